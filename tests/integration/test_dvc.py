"""The pipeline under the real DVC: what runs, what reruns, what is restored."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from conftest import HELD, Checkout, copy_checkout, edited, new_checkout, outside_environment, shell_in
from databases import runs_of
from forked import path_of_forks
from helpers import put
from imports import ROOT
from parsing import load_once

from leanresnet.scaffold.questions import SCALES, Scale
from pipeline import experiments

EVALUATIONS = {"evaluate@baseline", "evaluate@teacher", "evaluate@student"}
STAGES = {"download", "split", "train@baseline", "train@teacher", "distill", *EVALUATIONS}
MODELS = ("baseline", "teacher", "student")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """One of their own, since these tests train and evaluate in it again."""
    return new_checkout(tmp_path_factory)


def stale(checkout: Checkout) -> set[str]:
    """The stages whose own dependencies, params or command changed, from `dvc status`."""
    return set(json.loads(checkout.shell("dvc", "status", "--json").stdout))


def leaves(section: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def other_value(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case list():
            return [*value, value[-1]]
        case _:
            return 0.5


def stages_of(key: tuple[str, ...]) -> set[str]:
    """What a key of params.yaml should make stale, by the rule: one section, one stage."""
    match key:
        case ("train", model, *_):
            return {f"train@{model}"}
        case ("distill", "teacher"):
            return {"distill", *EVALUATIONS}
        case ("evaluate", *_):
            return EVALUATIONS
        case (section, *_):
            return {section}
    raise AssertionError(key)


@pytest.fixture
def status(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`dvc status` without a process a call: the same function that the command calls."""
    from dvc.repo import Repo
    from ruamel.yaml import YAML

    monkeypatch.setattr(YAML, "load", load_once())

    def changed() -> set[str]:
        with Repo(str(checkout.folder)) as repo:
            return {name.rpartition(":")[2] for name in repo.status()}

    yield changed
    assert changed() == set(), "a test left the checkout changed"


def test_a_fresh_repro_runs_every_stage_once_and_the_next_one_none(checkout: Checkout) -> None:
    for stage in STAGES:
        assert checkout.first_repro.count(f"Running stage '{stage}'") == 1
    again = checkout.shell("dvc", "repro")
    assert "Running stage" not in again.stdout
    assert "Data and pipelines are up to date" in again.stdout
    assert stale(checkout) == set()


def test_two_at_once_do_the_work_once_or_in_turn(checkout: Checkout) -> None:
    file = checkout.folder / "params.yaml"
    params = yaml.safe_load(file.read_text())
    params["evaluate"]["mistakes"] = 4
    repro = ("dvc", "repro", "evaluate@baseline")
    with edited(file, yaml.safe_dump(params)), ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: checkout.shell(*repro, check=False), range(2)))
        assert 0 in [done.returncode for done in both]
        for done in both:
            assert done.returncode == 0 or HELD.search(done.stderr), done.stderr
        assert "Running stage" in both[0].stdout + both[1].stdout
        assert "Running stage" not in checkout.shell(*repro).stdout
    assert "Running stage" not in checkout.shell(*repro).stdout


def test_the_demo_keeps_its_promise(checkout: Checkout) -> None:
    accuracy = {
        m: json.loads((checkout.folder / f"results/{m}/test.json").read_text())["test/accuracy"] for m in MODELS
    }
    assert accuracy["baseline"] >= 0.95
    assert accuracy["student"] >= 0.95


def test_each_key_makes_its_own_stage_stale_and_no_other(checkout: Checkout, status: Any) -> None:
    """All of a stage's status is asked for where a command names the key, and once for each set of stages.

    Elsewhere the part of it that a key can change will do, which takes a hundredth of the time.
    """
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    file = checkout.folder / "params.yaml"
    params = yaml.safe_load(file.read_text())
    named = set(re.findall(r"\$\{([\w.]+)\}", (checkout.folder / "dvc.yaml").read_text()))
    wrong, seen = {}, []
    with Repo(str(checkout.folder)) as repo:
        found = [(stage.addressing.rpartition(":")[2], stage.deps) for stage in repo.index.stages]
        tracked = [(name, dep) for name, deps in found for dep in deps if isinstance(dep, ParamsDependency)]
    for path, value in leaves(params):
        key, expected = ".".join(path), stages_of(path)
        other = "baseline" if key == "distill.teacher" else other_value(value)
        with edited(file, json.dumps(put(params, {key: other}))):
            if key in named or expected not in seen:
                stale = status()
            else:
                stale = {name for name, dep in tracked if dep.workspace_status()}
        seen.append(expected)
        if stale != expected:
            wrong[key] = stale
    assert wrong == {}


TRAINED = {"train@baseline", "train@teacher", "distill", *EVALUATIONS}
# A file of each package, and the stages that an edit of it makes stale.
EDITED = {
    "config/schema.py": set(STAGES),
    "files.py": set(STAGES),
    "data/cifar.py": {"download", "split"},
    "data/splits.py": set(STAGES),
    "models/resnet.py": TRAINED,
    "compute/device.py": TRAINED,
    "training/losses.py": TRAINED,
    "training/loop.py": TRAINED,
    "evaluation/report.py": set(EVALUATIONS),
    "text.py": set(STAGES),
    "errors.py": set(),
    "analysis/tables.py": set(),
    "signals.py": set(),
    "tracking/mlflow_client.py": set(),
    "jobs/launcher.py": set(),
    "analysis/comparison.py": set(),
    "serving/inference.py": set(),
    "scaffold/reference.py": set(),
}


def test_editing_a_package_makes_the_stages_stale_whose_bytes_it_determines(checkout: Checkout, status: Any) -> None:
    package = checkout.folder / "src/leanresnet"
    assert {name.partition("/")[0] for name in EDITED if "/" in name} == {
        each.parent.name for each in package.glob("*/__init__.py")
    }
    for name, expected in EDITED.items():
        with edited(package / name, (package / name).read_text() + "# edited\n"):
            assert status() == expected, name
    command = checkout.folder / "pipeline/train.py"
    with edited(command, command.read_text() + "# edited\n"):
        assert status() == set()


def test_what_python_leaves_beside_the_code_makes_nothing_stale(checkout: Checkout, status: Any) -> None:
    left = checkout.folder / "src/leanresnet/training/__pycache__/loop.cpython-311.pyc"
    left.parent.mkdir(exist_ok=True)
    left.touch()
    assert status() == set()


def test_going_back_restores_from_the_cache_without_training(checkout: Checkout) -> None:
    file = checkout.folder / "params.yaml"
    student = checkout.folder / "models/student/model.safetensors"
    weights = student.read_bytes()
    params = yaml.safe_load(file.read_text())
    params["distill"]["student"] |= {"epochs": 1}
    params["distill"]["student"]["schedule"] |= {"warmup_epochs": 0.5}
    with edited(file, yaml.safe_dump(params)):
        changed = checkout.shell("dvc", "repro").stdout
        assert {s for s in STAGES if f"Running stage '{s}'" in changed} == {"distill", "evaluate@student"}
        assert student.read_bytes() != weights
    restored = checkout.shell("dvc", "repro").stdout
    assert "Running stage" not in restored
    assert student.read_bytes() == weights


def test_a_student_teaches_the_next_one(checkout: Checkout) -> None:
    """README: born-again networks. Their maps are compared too."""
    file = checkout.folder / "params.yaml"
    first = json.loads((checkout.folder / "models/student/model.json").read_text())
    shutil.copytree(checkout.folder / "models/student", checkout.folder / "models/external")
    params = yaml.safe_load(file.read_text())
    params["distill"] |= {"teacher": "external", "attention_transfer": 1.0}
    params["distill"]["student"] |= {"epochs": 1}
    params["distill"]["student"]["schedule"] |= {"warmup_epochs": 0.5}
    with edited(file, yaml.safe_dump(params)):
        checkout.shell("dvc", "repro", "distill")
        second = json.loads((checkout.folder / "models/student/model.json").read_text())
    checkout.shell("dvc", "repro")
    assert second["teacher_sha256"] == first["sha256"]
    assert (second["params"]["distill.teacher"], second["params"]["distill.attention_transfer"]) == ("student", 1.0)
    assert json.loads((checkout.folder / "models/student/model.json").read_text()) == first


@pytest.fixture(scope="module")
def short(checkout: Checkout) -> int:
    """An experiment of this name, run in a temporary copy; how many runs the workspace got by it."""
    runs = len(runs_of(checkout.folder))
    # Of its own: what another test has trained, DVC takes from its cache.
    overrides = ["-S", "distill.student.epochs=2", "-S", "distill.student.schedule.warmup_epochs=1"]
    checkout.shell("dvc", "exp", "run", "--temp", "--name", "short", *overrides)
    return len(runs_of(checkout.folder)) - runs


def test_an_experiment_in_a_temporary_copy_logs_to_the_workspace(
    checkout: Checkout, short: int, tmp_path: Path
) -> None:
    """Also the README's commands: exp run -S, make exps, compare, params and metrics diff, plots show."""
    shell = checkout.shell
    assert short == 1
    assert shell("git", "status", "--porcelain").stdout == ""
    make = ("make", "--no-print-directory", f"--makefile={ROOT}/Makefile", "--old-file=.venv/.installed", "exps")
    shown = shell(*make, f"DIR={checkout.folder}").stdout
    assert {"accuracy", "evaluated_accuracy", "parameters", "epochs", "warmup_epochs"} <= set(shown.split())
    assert any(row.startswith("short ") and row.split()[-2:] == ["2", "1"] for row in shown.splitlines())
    assert max(map(len, shown.splitlines())) <= 120
    table = shell("leanresnet", "compare", "--experiment", "short", "--out", str(tmp_path / "short")).stdout
    assert table.splitlines()[2].startswith("| short | student | ")
    assert (tmp_path / "short.md").read_text() == table
    assert (tmp_path / "short.png").exists()
    assert "distill.student.epochs" in shell("dvc", "params", "diff", "HEAD", "short").stdout
    assert "results/student/test.json" in shell("dvc", "metrics", "diff", "HEAD", "short").stdout
    assert "test/accuracy" in shell("dvc", "metrics", "show").stdout
    page = Path(shell("dvc", "plots", "show").stdout.strip().removeprefix("file://")).read_text()
    assert "val/accuracy" in page
    assert "charts need scripts" in page


def test_a_workspace_from_an_archive_without_git(tmp_path: Path) -> None:
    home = copy_checkout(tmp_path / "unpacked")
    environment = {"PYTHONPATH": f"{home}:{home / 'src'}", "PATH": path_of_forks()}
    shell_in(tmp_path, **environment)("leanresnet", "init", "space", "--preset", "demo")
    inside = shell_in(tmp_path / "space", **environment)
    assert "Running stage 'split'" in inside("dvc", "repro", "split").stdout
    assert "stages to run: train@baseline, train@teacher" in inside("leanresnet", "check").stdout
    assert (tmp_path / "space/results/split/samples.png").stat().st_size > 1000
    # As docs/reference.md puts it under git: the cache and the outputs stay out, and DVC's experiments work.
    inside("git", "init", "--quiet")
    inside("dvc", "config", "core.no_scm", "false")
    inside("git", "add", "--all")
    author = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
    inside("git", *author, "commit", "--quiet", "--message", "workspace")
    kept = {".dvc/.gitignore", ".dvc/config", ".dvc/plots.html", ".dvcignore", ".gitignore", "dvc.lock", "dvc.yaml"}
    kept |= {"params.schema.json", "params.yaml", "src/leanresnet"}
    assert set(inside("git", "ls-files").stdout.split()) == kept
    assert "workspace" in inside("dvc", "exp", "show", "--csv").stdout


QUESTION = """
title: Does the reference teach another?
model: student
runs:
  - {name: student, recipe: {epochs: 1, schedule: {warmup_epochs: 0.5}, seed: 1}, learns_from: [reference]}
"""


def forked_dvc(*arguments: str, shown: bool = False) -> subprocess.CompletedProcess[str]:
    """As `workspace.dvc`, but in a fork; the workers of the queue are processes of their own all the same."""
    return subprocess.run(["dvc", *arguments], capture_output=not shown, text=True)


@pytest.fixture
def question(checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its name; the checkout is the workspace in which it is asked, with the demo's baseline as the reference."""
    (tmp_path / "taught.yaml").write_text(QUESTION)
    (tmp_path / ".experiments").mkdir()
    (tmp_path / ".experiments/cpu").symlink_to(checkout.folder)
    monkeypatch.setattr(experiments, "QUESTIONS", tmp_path)
    monkeypatch.setitem(SCALES, "cpu", Scale("demo", 1))
    monkeypatch.setattr(experiments, "dvc", forked_dvc)
    monkeypatch.chdir(tmp_path)
    path = f"{checkout.folder}:{checkout.folder / 'src'}"
    for name, value in outside_environment(PYTHONPATH=path, PATH=path_of_forks()).items():
        monkeypatch.setenv(name, value)
    yield "taught"
    checkout.shell("dvc", "queue", "stop")
    for left in ("models/external", "results/taught.md", "results/taught.png"):
        path = checkout.folder / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_question_is_asked_through_the_queue(checkout: Checkout, question: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(experiments.experiments, ["run", question, "--scale", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0
    assert {"reference", "taught-student"} <= set(checkout.shell("dvc", "exp", "list", "--name-only").stdout.split())
    table = (checkout.folder / "results/taught.md").read_text()
    # The reference's baseline came from the cache, so that it has no training of its own.
    rows = sorted(row.split(" | ")[:2] for row in table.splitlines() if row.startswith("| ") and "---" not in row)
    assert rows == [["| reference", "baseline"], ["| run", "model"], ["| taught-student", "student"]]
    assert "paired difference is the test accuracy minus that of reference" in table
    assert done.stdout.endswith(table)
    assert (checkout.folder / "results/taught.png").exists()
    taught = tmp_path / "student"
    checkout.shell("dvc", "get", "--rev", "taught-student", ".", "models/student", "--out", str(taught))
    teacher = json.loads((checkout.folder / "models/baseline/model.json").read_text())
    assert json.loads((taught / "model.json").read_text())["teacher_sha256"] == teacher["sha256"]
