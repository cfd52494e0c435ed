"""Presets: small files that are merged, complete and valid, each saying what it is for."""

import subprocess
from pathlib import Path

import pytest
import yaml
from imports import ROOT

from leanresnet.config.load import load_params
from leanresnet.errors import ConfigError
from leanresnet.models.complexity import check_budget
from leanresnet.scaffold.presets import DEFAULT, load_preset, merge, names
from leanresnet.scaffold.reference import render

PRESETS = ROOT / "presets"
every_preset = pytest.mark.parametrize("name", names(PRESETS))
# With figures in docs/results.md that were measured so; their teachers are other networks than their students.
SHARED_SEEDS = {"cpu", "paper-cpu"}
# With figures of such a teacher, and the preset that is built on it.
SMOOTHED_TEACHERS = {"cpu", "folder"}


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.yaml").write_text(f"# For a test.\n{text}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Presets beside the real default."""
    (tmp_path / "default.yaml").write_text((PRESETS / "default.yaml").read_text())
    return tmp_path


@every_preset
def test_every_preset_is_valid_and_within_its_budget(name: str) -> None:
    for model, recipe in load_preset(name, PRESETS).params.recipes().items():
        check_budget(f"{name}: {model}", recipe.model, recipe.max_parameters)


@every_preset
def test_every_preset_begins_by_saying_what_it_is_for(name: str) -> None:
    title = load_preset(name, PRESETS).title
    assert title
    assert title.endswith(".")


@every_preset
def test_every_preset_says_only_what_differs(name: str) -> None:
    if name == DEFAULT:
        return
    own = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    base = yaml.safe_load((PRESETS / f"{own.pop('base', DEFAULT)}.yaml").read_text())
    repeated = [path for path, value in leaves(own).items() if leaves(base).get(path, ...) == value]
    # A recipe may say again what another recipe's value under `recipe` has changed.
    assert [path for path in repeated if path[0] == "recipe"] == []


def leaves(values: object, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    if not isinstance(values, dict):
        return {place: values}
    return {path: leaf for key, value in values.items() for path, leaf in leaves(value, (*place, key)).items()}


@every_preset
def test_a_student_has_another_seed_than_its_teacher(name: str) -> None:
    params = load_preset(name, PRESETS).params
    teacher, student = params.recipes()[params.distill.teacher], params.distill.student
    same = teacher.seed == student.seed
    assert same == (name in SHARED_SEEDS), f"{name}: distill.student.seed = {student.seed}, as its teacher's"


@pytest.mark.parametrize("name", ["best", "cpu", "demo", "fast", "folder", "long-cpu", "paper-cpu", "paper-short"])
def test_a_preset_for_a_cpu_compiles_nothing(name: str) -> None:
    """On a CPU, compilation gains little or nothing within the epochs of these presets, see docs/performance.md."""
    assert [key for key, recipe in load_preset(name, PRESETS).params.recipes().items() if recipe.compile] == []


@every_preset
def test_a_student_has_the_label_smoothing_of_the_baseline_and_a_teacher_has_none(name: str) -> None:
    """So that the difference of the two is the teacher's gain."""
    recipes = load_preset(name, PRESETS).params.recipes()
    assert recipes["student"].label_smoothing == recipes["baseline"].label_smoothing
    assert recipes["teacher"].label_smoothing == (0.1 if name in SMOOTHED_TEACHERS else 0.0)


@every_preset
def test_each_schedule_fits_the_epochs_of_the_preset(name: str) -> None:
    """So that it is a fair choice: the values of a schedule that a preset does not use count when a user names it."""
    for recipe in load_preset(name, PRESETS).params.recipes().values():
        schedule = recipe.schedule
        reductions = (recipe.epochs - schedule.warmup_epochs) / schedule.step_epochs
        assert 1 < reductions <= 4
        assert schedule.warmup_epochs <= schedule.milestones[0] <= schedule.milestones[-1] < recipe.epochs
        assert schedule.warmup_epochs + schedule.patience + 1 < recipe.epochs
        assert schedule.warmup_epochs + schedule.restart_epochs < recipe.epochs


def test_the_released_params_are_the_default() -> None:
    """As they were committed: a user may change the file, which is what it is for."""
    done = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=ROOT, capture_output=True, text=True)
    released = done.stdout if done.returncode == 0 else (ROOT / "params.yaml").read_text()
    preset = load_preset(DEFAULT, PRESETS)
    assert released == render(preset.params, preset.title)


def test_a_recipe_counts_for_all_three_models_and_one_models_value_goes_before_it(folder: Path) -> None:
    write(
        folder,
        "mine",
        "recipe:\n  epochs: 30\n  model:\n    blocks: [1, 1, 1, 1]\ntrain:\n  teacher:\n    epochs: 90\n",
    )
    write(folder, "other", "base: mine\nrecipe:\n  batch_size: 64\n")
    recipes = load_preset("other", folder).params.recipes()
    assert {name: recipe.epochs for name, recipe in recipes.items()} == {"baseline": 30, "teacher": 90, "student": 30}
    assert {recipe.batch_size for recipe in recipes.values()} == {64}
    assert {recipe.model.blocks for recipe in recipes.values()} == {(1, 1, 1, 1)}


def test_what_a_preset_does_not_name_is_the_defaults(folder: Path) -> None:
    write(folder, "mine", "split:\n  seed: 7\n")
    ours, default = (load_preset(name, folder).params.model_dump() for name in ("mine", DEFAULT))
    assert ours["split"].pop("seed") == 7
    default["split"].pop("seed")
    assert ours == default


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe:\n  epoch: 3\n", r"mine\.yaml: train\.baseline\.epoch = 3: unknown key \(did you mean epochs\?\)"),
        ("recipes:\n  epochs: 3\n", r"mine\.yaml: recipes = .*: unknown key"),
        ("recipe: 3\n", r"mine\.yaml: train\.baseline = 3: expected: "),
        ("base: mine\n", r"preset mine: it is its own base \(mine -> mine\)"),
        ("base: demos\n", r"preset = 'demos': unknown, expected: default, mine"),
        ("- 1\n", r"mine\.yaml: \[1\] at the top level, expected: a mapping"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(text: str, message: str, folder: Path) -> None:
    write(folder, "mine", text)
    with pytest.raises(ConfigError, match=message):
        load_preset("mine", folder)


def test_an_unknown_preset_is_one_line_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"preset = 'dmeo': unknown \(did you mean demo\?\), expected: default, best"):
        load_preset("dmeo", PRESETS)


def test_only_mappings_are_merged() -> None:
    assert merge({"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "d": {"e": 2}}) == {
        "a": {"b": 1, "c": [3]},
        "d": {"e": 2},
    }


def test_a_written_preset_is_read_again_as_it_was(tmp_path: Path) -> None:
    for name in names(PRESETS):
        preset = load_preset(name, PRESETS)
        (tmp_path / "params.yaml").write_text(render(preset.params, preset.title))
        assert load_params(tmp_path / "params.yaml") == preset.params
