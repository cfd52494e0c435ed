"""What `pip install` puts into an environment, away from this checkout."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from conftest import Shell, shell_in
from databases import place_database, runs_of
from helpers import put, tiny_model
from imports import ROOT

from pipeline.init import CODE

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and this one's packages, but not its link to the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    python = folder / "environment" / "bin" / "python"
    for command in (
        (*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)),
        (sys.executable, "-m", "venv", "--without-pip", str(folder / "environment")),
        (*PIP, "--python", str(python), "install", "--no-deps", "--no-index", f"--find-links={folder}", "leanresnet"),
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    # Python reads no link of a folder that a link names.
    (packages(folder / "environment") / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "environment"


def packages(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"))


@pytest.fixture
def shell(environment: Path, tmp_path: Path) -> Shell:
    return shell_in(tmp_path, PATH=f"{environment / 'bin'}:/usr/bin:/bin")


def test_it_installs_one_package(environment: Path) -> None:
    installed = {path.name for path in packages(environment).iterdir() if path.suffix not in (".pth", ".dist-info")}
    assert installed == {"leanresnet"}


def test_the_demo_runs_in_an_empty_folder(environment: Path, shell: Shell, tmp_path: Path) -> None:
    """Each of the five stages as a process of its own, which compares the code that it lists with that which runs."""
    shell("leanresnet", "init", "demo", "--preset", "demo")
    space = tmp_path / "demo"
    code = packages(environment) / "leanresnet"
    assert (space / "src" / "leanresnet").readlink() == code
    for name in ("dvc.yaml", ".dvcignore"):
        assert (space / name).read_text() == (ROOT / name).read_text()
    assert (space / ".gitignore").read_text() == (ROOT / ".gitignore").read_text() + CODE
    params = yaml.safe_load((space / "params.yaml").read_text())
    tiny = {"split.training": 200, "evaluate.batch_size": 50}
    for recipe in ("train.teacher", "distill.student"):
        tiny[f"{recipe}.model"] = tiny_model().model_dump(mode="json")
        tiny |= {f"{recipe}.epochs": 1, f"{recipe}.schedule.warmup_epochs": 0}
    (space / "params.yaml").write_text(yaml.safe_dump(put(params, tiny)))
    place_database(space)
    said = shell("python", "-m", "dvc", "--cd", "demo", "repro", "evaluate@student").stdout
    for command in ("download", "split", "train teacher", "distill", "evaluate"):
        assert f"> leanresnet {command} " in said
    # On a slow machine, MLflow may not have received all runs.
    shell("sh", "-c", "cd demo && leanresnet sync")
    report = json.loads((space / "results" / "student" / "test.json").read_text())
    runs = runs_of(space)
    assert {run.data.tags["model"]: run.info.status for run in runs} == dict.fromkeys(
        ("teacher", "student"), "FINISHED"
    )
    (student,) = (run for run in runs if run.data.tags["model"] == "student")
    assert student.data.metrics["test/accuracy"] == report["test/accuracy"]


def test_modules_are_programs_too(shell: Shell) -> None:
    """As `torchrun -m leanresnet` starts it."""
    assert shell("python", "-m", "leanresnet", "--version").stdout.startswith("leanresnet, version ")
