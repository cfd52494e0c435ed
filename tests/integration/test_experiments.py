"""The questions in experiments/: every run that they would queue is valid and fits, before hours are spent on it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import outside_environment, preset_text
from helpers import experiments_function, put
from imports import ROOT

from leanresnet.config.schema import Params
from leanresnet.models.complexity import check_budget

QUESTIONS = sorted(path for path in (ROOT / "experiments").iterdir() if path.name != "run")
PRESETS = {"cpu": "paper-cpu", "gpu": "paper"}
# What `learned` made models/previous of, and the target, the name and the values of a run.
Try = tuple[str, str, str, dict[str, Any]]


def setting(scale: str) -> str:
    """The lines of experiments/run that the questions rely on, with a `try` and a `learned` that print."""
    script = (ROOT / "experiments" / "run").read_text().splitlines()
    variables = next(line for line in script if line.startswith("target="))
    sizes = next(line for line in script if line.strip().startswith(f"{scale}) preset="))
    values = sizes.strip().removeprefix(f"{scale}) ").removesuffix(";;")
    functions = 'try() { echo "$target" "$@"; }; learned() { echo learned "$@"; }'
    return f"set -euo pipefail\n{variables}\n{values}\n{experiments_function('taught')}\n{functions}\n"


def tries(question: Path, scale: str, folder: Path) -> list[Try]:
    """Each run, in a folder with the scale's params."""
    (folder / "params.yaml").write_text(preset_text(PRESETS[scale]))
    script = f"{setting(scale)}source {question}\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=outside_environment(), capture_output=True, text=True, check=True
    )
    found, previous = [], ""
    for line in done.stdout.splitlines():
        target, name, *values = line.split()
        if target == "learned":
            previous = line
        else:
            changes = {key: yaml.safe_load(value) for key, value in (v.split("=", 1) for v in values)}
            found.append((previous, target, name, changes))
    return found


@pytest.mark.parametrize("scale", PRESETS)
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda path: path.name)
def test_a_question_queues_valid_runs_that_differ(question: Path, scale: str, tmp_path: Path) -> None:
    assert question.read_text().startswith("# ")
    found = tries(question, scale, tmp_path)
    assert len(found) >= 2
    assert len({name for _, _, name, _ in found}) == len(found)
    seen = []
    for previous, target, name, values in found:
        valid = Params.model_validate(put(yaml.safe_load((tmp_path / "params.yaml").read_text()), values))
        assert (previous, valid) not in seen
        seen.append((previous, valid))
        for model, recipe in valid.recipes().items():
            check_budget(f"{name}: {model}", recipe.model, recipe.budget)
        model = target.removeprefix("evaluate@")
        assert model in valid.recipes()
        # A baseline that asks for a teacher would train one.
        taught = "previous" if previous else "teacher"
        assert valid.distill.teacher == (taught if model == "student" else "baseline")


@pytest.mark.parametrize("scale", PRESETS)
def test_who_teaches_is_what_an_earlier_question_found(scale: str, tmp_path: Path) -> None:
    questions = (ROOT / "experiments" / "run").read_text().split("set -- ")[1].splitlines()[0].split()
    assert sorted(questions) == [question.name for question in QUESTIONS]
    asked = {"reference"}
    for question in questions:
        found = tries(ROOT / "experiments" / question, scale, tmp_path)
        for _, model, *names in (previous.split() for previous, *_ in found if previous):
            assert set(names) <= asked
            assert model in ("baseline", "student")
        asked |= {f"{question}-{name}" for _, _, name, _ in found}


@pytest.mark.parametrize("scale", PRESETS)
def test_a_student_has_another_seed_than_the_previous_models_that_teach_it(scale: str, tmp_path: Path) -> None:
    base = yaml.safe_load(preset_text(PRESETS[scale]))
    seeds = {"reference": base["train"]["baseline"]["seed"]}
    # The question's own teachers are those of the one before.
    for question in ("distillation", "teachers"):
        for previous, target, name, values in tries(ROOT / "experiments" / question, scale, tmp_path):
            recipe = put(base, values)["distill"]["student"] if target == "evaluate@student" else None
            seed = (recipe or put(base, values)["train"]["baseline"])["seed"]
            assert seed not in [seeds[teacher] for teacher in previous.split()[2:]]
            seeds[f"{question}-{name}"] = seed


@pytest.mark.parametrize("arguments", [["moon"], ["cpu", "colour"]])
def test_an_unknown_scale_or_question_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "experiments" / "run", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert arguments[-1] in done.stderr
    assert list(tmp_path.iterdir()) == []


# Lists twenty thousand experiments, says what it queues, and gets what it is asked for.
DVC = """#!/usr/bin/env bash
case "$1 $2" in
  "exp list") echo sizes-small; sleep 0.2; printf 'another-%s\\n' {1..20000} ;;
  "exp run") [ "$3" = --run-all ] || echo "queued $6" ;;
  "get --quiet") mkdir "$8"; echo "$4" > "$8/model.json" ;;
esac
"""


def with_that_dvc(script: str, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A script that calls this function of experiments/run, in an empty folder."""
    dvc = folder / "bin" / "dvc"
    dvc.parent.mkdir()
    dvc.write_text(DVC)
    dvc.chmod(0o755)
    lines = f"set -euo pipefail\nquestion=sizes target=t beside= asked= jobs=1\n{experiments_function(name)}\n{script}"
    environment = outside_environment(PATH=f"{dvc.parent}:/usr/bin:/bin")
    return subprocess.run(["bash", "-c", lines], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_search_that_fails_ends_the_question(tmp_path: Path) -> None:
    script = f"{setting('cpu')}budget=-1\nsource {ROOT / 'experiments' / 'architectures'}\necho over"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=outside_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "'--budget'" in done.stderr


def test_what_has_run_is_not_queued_again(tmp_path: Path) -> None:
    """However long the list of experiments is, and wherever in it the name stands."""
    assert with_that_dvc("try small a=1; try large a=2", "try", tmp_path).stdout == "queued sizes-large\n"


def test_a_model_teaches_where_none_has_been_trained(tmp_path: Path) -> None:
    script = 'asked=" another-x "; learned student another-7; learned student another-x; echo "$beside"'
    done = with_that_dvc(f"{script}; cat models/previous/model.json", "learned", tmp_path)
    assert done.stdout == "--copy-paths models/previous\nanother-x\n"


def test_what_is_to_teach_must_have_been_asked(tmp_path: Path) -> None:
    done = with_that_dvc("learned student depth-1-2-1", "learned", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "'sizes' learns from depth-1-2-1" in done.stderr
    assert "after the question 'depth'" in done.stderr
