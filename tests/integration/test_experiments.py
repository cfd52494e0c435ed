"""The questions in experiments/: every run that they queue is valid and fits, before hours are spent on it."""

import json
import os
import subprocess
import sys
import threading
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import outside_environment, preset_text
from forked import run_program
from helpers import changed
from imports import ROOT
from waiting import wait_for

from leanresnet.analysis.search import enumerate_models, near_budget, spread
from leanresnet.config.load import validate
from leanresnet.config.schema import Params
from leanresnet.errors import ConfigError, StorageError
from leanresnet.models.complexity import check_budget
from leanresnet.scaffold.presets import load_preset, merge
from leanresnet.scaffold.questions import (
    REFERENCE,
    SCALES,
    Experiment,
    choose,
    load_experiments,
    load_question,
    question_names,
)
from leanresnet.tracking.git import git
from pipeline import experiments as command
from pipeline.init import UNTRACKED
from pipeline.search import search

SOMEBODY = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
QUESTIONS, PRESETS = ROOT / "experiments", ROOT / "presets"
every_scale = pytest.mark.parametrize("scale", SCALES)
ASKED = [
    (name, scale) for name in question_names(QUESTIONS) for scale in load_question(QUESTIONS / f"{name}.yaml").scales
]


@cache
def preset_of(scale: str) -> dict[str, Any]:
    return load_preset(SCALES[scale].preset, PRESETS).params.model_dump(mode="json")


@cache
def experiments_of(scale: str) -> dict[str, Experiment]:
    return load_experiments(QUESTIONS, scale, PRESETS)


def params_of(experiment: Experiment, scale: str) -> Params:
    return validate(merge(preset_of(scale), experiment.values), experiment.name, Params)


@pytest.mark.parametrize(("question", "scale"), ASKED)
def test_a_question_asks_for_valid_runs_that_differ(question: str, scale: str) -> None:
    found = [each for each in experiments_of(scale).values() if each.question == question]
    assert len(found) >= 2
    seen = []
    for each in found:
        assert each.name.startswith(f"{question}-")
        valid = params_of(each, scale)
        assert (each.learns_from, valid) not in seen
        seen.append((each.learns_from, valid))
        for model, recipe in valid.recipes().items():
            check_budget(f"{each.name}: {model}", recipe.model, recipe.max_parameters)
        taught = "external" if each.learns_from else "teacher"
        assert valid.distill.teacher == (taught if each.model == "student" else "baseline")


@every_scale
def test_who_teaches_is_what_an_earlier_question_found(scale: str) -> None:
    found = experiments_of(scale)
    names = [name for name, each in ASKED if each == scale]
    assert [each.name for each in choose(found, names, [])] == list(found)


@every_scale
def test_a_student_has_another_seed_than_the_previous_models_that_teach_it(scale: str) -> None:
    found = experiments_of(scale)
    seeds = {name: params_of(each, scale).recipes()[each.model].seed for name, each in found.items()}
    for name, each in found.items():
        assert seeds[name] not in [seeds[teacher] for teacher in each.learns_from]


@pytest.mark.parametrize(("scale", "budget", "widths"), [("cpu", 350_000, 16), ("gpu", 5_000_000, 64)])
def test_the_architectures_are_those_that_the_search_gives(scale: str, budget: int, widths: int) -> None:
    """By the command in the file."""
    channels = [widths * each // 2 for each in (2, 3, 4, 6, 8, 12)]
    line = f"{scale}: leanresnet search --budget {budget} --count 8 --channels {','.join(map(str, channels))} --format"
    assert line in (QUESTIONS / "architectures.yaml").read_text()
    base = load_preset(SCALES[scale].preset, PRESETS).params.train.baseline.model
    options = {each.name: each for each in search.params}
    default = {
        name: options[name].type_cast_value(None, options[name].default)
        for name in ("layers", "blocks", "kernels", "skip_kernels")
    }
    _, candidates = near_budget(enumerate_models(base, channels=channels, **default), budget, options["least"].default)
    runs = load_question(QUESTIONS / "architectures.yaml").runs
    listed = [(run.name, changed(base, **run.recipe["model"])) for run in runs if run.scale == scale]
    assert listed == [(each.name, each.model) for each in reversed(spread(candidates, 8))]


@pytest.mark.parametrize("verb", ["run", "list"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "moon"], "'moon' is not one of 'cpu', 'gpu', 'long'"),
        (["dept"], "'dept': unknown (did you mean depth?)"),
    ],
)
def test_an_unknown_scale_or_question_is_one_line(
    verb: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = run_program("experiments", verb, *arguments, cwd=tmp_path, env=outside_environment())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_list_has_a_line_a_run_for_a_job_array(tmp_path: Path) -> None:
    asked = ("experiments", "list", "schedules", "distillation", "--scale", "gpu")
    done = run_program(*asked, cwd=tmp_path, env=outside_environment())
    assert done.returncode == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines[:4]] == [
        REFERENCE,
        "schedules-step",
        "schedules-plateau",
        "distillation-hinton-0",
    ]
    assert lines[1][1:] == ["evaluate@baseline", "distill.teacher=baseline", "train.baseline.schedule.name=step"]
    assert lines[3][1:] == ["evaluate@student", "distill.teacher=teacher", "distill.student.seed=0"]


@pytest.mark.parametrize(
    ("values", "is_away"),
    [("", False), ("distill.teacher=baseline train.baseline.seed=1", False), ("", True)],
)
def test_a_task_of_a_job_array_runs_its_line(values: str, is_away: bool, tmp_path: Path) -> None:
    """If MLflow does not answer, it fails, and the clone keeps the events."""
    space, programs, asked = tmp_path / "space", tmp_path / "bin", tmp_path / "asked"
    space.mkdir()
    programs.mkdir()
    for name in ("dvc", "leanresnet"):
        code = 5 if name == "leanresnet" and is_away else 0
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {asked}\nexit {code}\n')
        (programs / name).chmod(0o755)
    (space / "runs").write_text(f"other evaluate@teacher\nmine evaluate@baseline {values}\n")
    for arguments in (("init",), ("add", "--all"), (*SOMEBODY, "commit", "--message", "a workspace")):
        assert git(space, *arguments) is not None
    environment = {
        "SLURM_SUBMIT_DIR": str(space),
        "SLURM_ARRAY_TASK_ID": "2",
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", ROOT / "team/slurm", "runs"], cwd=space, env=outside_environment(**environment))
    settings = "".join(f"--set-param {value} " for value in values.split())
    lines = asked.read_text().splitlines()
    ran = f"dvc exp run --name mine {settings}evaluate@baseline"
    push = [] if is_away else ["dvc exp push --no-cache origin mine"]
    assert lines[lines.index(ran) :] == [ran, "leanresnet sync", *push]
    assert done.returncode == (5 if is_away else 0)
    assert (space / ".experiments/slurm/mine").exists() == is_away


class Queue:
    """DVC that notes what it is asked for, and gets a model that is called after its experiment."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.have_run = ""

    def __call__(self, *arguments: str, shown: bool = False) -> subprocess.CompletedProcess[str]:
        values = dict(pairwise(arguments))
        if arguments[0] == "get":
            Path(values["--out"]).mkdir()
            Path(values["--out"], "name").write_text(f"{values['--rev']} {values['.']}")
            self.asked.append(f"get {values['--rev']}")
        elif "--run-all" in arguments:
            previous = Path("models/external/name")
            self.asked.append(f"run by {previous.read_text()}" if previous.exists() else "run")
        elif "--queue" in arguments:
            beside = f" with {values['--copy-paths']}" if "--copy-paths" in values else ""
            self.asked.append(f"{arguments[-1]} {values['--name']}{beside}")
        return subprocess.CompletedProcess(arguments, 0, self.have_run if arguments[:2] == ("exp", "list") else "", "")


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    monkeypatch.setattr(command, "dvc", queue)
    monkeypatch.chdir(tmp_path)
    return queue


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace of the scale cpu, in which a repository need not be made."""
    space = tmp_path / ".experiments/cpu"
    space.mkdir(parents=True)
    (space / "dvc.yaml").touch()
    (space / "params.yaml").write_text(preset_text("paper-cpu"))
    (tmp_path / "params.yaml").touch()
    monkeypatch.setattr(command, "_init_repository", lambda message: None)
    return space


@pytest.fixture
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of runs that are not there."""
    shown = SimpleNamespace(markdown=lambda: "the table", notes=[], write=lambda out: None)
    monkeypatch.setattr("leanresnet.analysis.comparison.select", lambda targets, experiments, here: [])
    monkeypatch.setattr("leanresnet.analysis.comparison.compare", lambda runs, against: shown)


def experiment(name: str, *learns_from: str) -> Experiment:
    return Experiment(name, "a", "student" if learns_from else "baseline", {}, learns_from)


def ask(have_run: list[str], *chosen: Experiment) -> None:
    command._run_queue(chosen, {each.name: each for each in chosen}, have_run, 1)


def test_what_has_run_is_not_queued_again(queue: Queue) -> None:
    ask(["a-small", "a-taught"], *map(experiment, ("a-small", "a-large")), experiment("a-taught", "a-small"))
    assert queue.asked == ["evaluate@baseline a-large", "run"]


def test_a_model_teaches_once_it_and_those_taught_before_have_run(queue: Queue) -> None:
    first, second = experiment("a-1"), experiment("a-2")
    ask(["a-2"], first, second, experiment("a-3", "a-1"), experiment("a-4", "a-1"), experiment("a-5", "a-2"))
    beside = "with models/external"
    assert queue.asked == [
        "evaluate@baseline a-1",
        "run",
        "get a-1",
        f"evaluate@student a-3 {beside}",
        f"evaluate@student a-4 {beside}",
        "run by a-1 models/baseline",
        "get a-2",
        f"evaluate@student a-5 {beside}",
        "run by a-2 models/baseline",
    ]


def test_workers_of_before_are_waited_for(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their experiments have ended by then. Workers that have ended, and other processes, do not count."""
    folder = tmp_path / command.WORKERS
    folder.mkdir(parents=True)
    start = [sys.executable, "-c", "import time; time.sleep(600)", "queue-worker"]
    dead = subprocess.Popen([sys.executable, "-c", "", "queue-worker"])
    dead.wait()
    for name, pid in (("dead", dead.pid), ("other", os.getpid()), ("damaged", "")):
        (folder / f"{name}.pid").write_text(str(pid))
    assert command._workers() == []
    with subprocess.Popen(start) as worker:
        (folder / "worker-1.pid").write_text(str(worker.pid))
        # Its arguments are seen a moment after its start.
        wait_for(lambda: command._workers() == ["worker-1"])

        def stop(*arguments: str, shown: bool = False) -> subprocess.CompletedProcess[str]:
            assert arguments == ("queue", "stop")
            threading.Timer(0.3, worker.terminate).start()
            return queue(*arguments, shown=shown)

        monkeypatch.setattr(command, "dvc", stop)
        command._stop_workers()
        assert command._workers() == []
    assert (
        capsys.readouterr().err
        == "waiting for the workers of DVC's queue to end; Ctrl-C leaves what they run running\n"
    )
    command._stop_workers()
    assert capsys.readouterr().err == ""


def test_what_still_ran_is_not_queued_a_second_time(
    queue: Queue, space: Path, no_table: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-C, which does not end DVC's workers."""
    names = " ".join(each for each in experiments_of("cpu") if each == REFERENCE or each.startswith("depth-"))
    monkeypatch.setattr(command, "_stop_workers", lambda: setattr(queue, "have_run", names))
    done = CliRunner().invoke(command.run, ["depth", "--scale", "cpu"], catch_exceptions=False)
    assert (done.exit_code, queue.asked) == (0, ["run"])


OTHER_EPOCHS, OTHER_SEED = ({"train": {"baseline": each}} for each in ({"epochs": 3}, {"seed": 9}))


@pytest.mark.parametrize(
    ("of_workspace", "of_experiment", "message"),
    [
        (OTHER_EPOCHS, {}, "which has to equal presets/paper-cpu.yaml: train.baseline.epochs = 3, expected: 15"),
        ({}, OTHER_SEED, "the experiment reference, which has run: train.baseline.seed = 9, expected: 0; `dvc exp rem"),
        ({"download": {"sha256": "0" * 64}}, {"download": {"sha256": "1" * 64}}, None),
    ],
)
def test_other_values_than_those_of_the_question_are_refused(
    of_workspace: dict[str, Any],
    of_experiment: dict[str, Any],
    message: str | None,
    queue: Queue,
    space: Path,
    no_table: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after `dvc exp apply`, or of a run that an earlier version asked for. The data may come from elsewhere."""
    queue.have_run = REFERENCE
    base, reference = preset_of("cpu"), experiments_of("cpu")[REFERENCE]
    (space / "params.yaml").write_text(json.dumps(merge(base, of_workspace)))
    ran = validate(merge(merge(base, reference.values), of_experiment), "", Params)
    monkeypatch.setattr("leanresnet.analysis.dvc_experiments.params_of_experiment", lambda root, name: ran)
    done = CliRunner().invoke(command.run, ["depth", "--scale", "cpu"])
    if message is None:
        assert isinstance(done.exception, StorageError)
        assert queue.asked[-1] == "run"
    else:
        assert isinstance(done.exception, ConfigError)
        assert message in str(done.exception)
        assert queue.asked == []


def test_workers_that_end_before_the_queue_is_empty_are_replaced(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """None while all live, nor where nothing is queued."""
    monkeypatch.setattr(command, "WATCH_SECONDS", 0.01)
    states = iter([(["1", "2"], "Queued"), (["1"], "Running"), ([], "Queued")])
    replaced = threading.Event()
    asked: list[tuple[str, ...]] = []

    def dvc(*arguments: str, shown: bool = False) -> subprocess.CompletedProcess[str]:
        if "--run-all" in arguments:
            assert replaced.wait(60)
        elif arguments[:2] == ("queue", "start"):
            replaced.set()
        asked.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, f"a Task {status}", "")

    def workers() -> list[str]:
        nonlocal status
        living, status = next(states, (["1", "2"], ""))
        return living

    status = ""
    monkeypatch.setattr(command, "dvc", dvc)
    monkeypatch.setattr(command, "_workers", workers)
    command._run_queued(2)
    assert [each for each in asked if each[0] == "queue"] == [("queue", "status")] * 2 + [
        ("queue", "start", "--jobs", "2")
    ]


def test_all_that_has_to_run_again_is_named_at_once(queue: Queue, space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a student of one of them, whose own values are the same."""
    known, first = experiments_of("cpu"), "distillation-hinton-0"
    taught = [each.name for each in known.values() if first in each.learns_from]
    assert len(taught) == 3
    queue.have_run = " ".join(known)

    def params_of_experiment(root: Path, name: str) -> Params:
        if name == first:
            raise ConfigError("params.yaml of the experiment: split: missing, expected: a value")
        return params_of(known[name], "cpu")

    monkeypatch.setattr("leanresnet.analysis.dvc_experiments.params_of_experiment", params_of_experiment)
    done = CliRunner().invoke(command.run, ["distillation", "teachers", "--scale", "cpu"])
    assert isinstance(done.exception, ConfigError)
    remedy = f"`dvc exp remove {first} {' '.join(taught)}` in {space} lets them run again"
    assert str(done.exception) == f"params.yaml of the experiment: split: missing, expected: a value; {remedy}"


def test_several_models_teach_as_their_ensemble(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of their names, which is a part of the ensemble's bytes."""
    members: list[str] = []
    monkeypatch.setattr("leanresnet.models.checkpoint.load_model", lambda folder: folder.name)
    monkeypatch.setattr("leanresnet.models.checkpoint.save_ensemble", lambda models, _: members.extend(models))
    ask(["a-2", "a-1"], experiment("a-2"), experiment("a-1"), experiment("a-3", "a-2", "a-1"))
    assert members == ["a-1", "a-2"]
    assert queue.asked == ["run", "get a-2", "get a-1", "evaluate@student a-3 with models/external", "run"]


def test_the_workspace_of_a_scale_has_its_preset(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.workspace.dvc", lambda *arguments, **_: queue(*arguments))
    monkeypatch.setattr(command, "_init_repository", lambda message: None)
    (tmp_path / "params.yaml").touch()
    done = CliRunner().invoke(command.run, ["--scale", "long"])
    assert "failed, so the tables lack them" in str(done.exception)
    assert (tmp_path / ".experiments/long/params.yaml").read_text() == preset_text("long-cpu")


@pytest.mark.parametrize(("have_run", "tables"), [("reference\n", 1), ("", 0)])
def test_experiments_that_fail_are_named_at_the_end(
    have_run: str, tables: int, queue: Queue, space: Path, no_table: None
) -> None:
    """DVC's own exit code is 0. If all of them fail, there is no table."""
    queue.have_run = have_run
    done = CliRunner().invoke(command.run, ["depth", "--scale", "cpu"])
    assert done.output.count("the table") == tables
    assert isinstance(done.exception, StorageError)
    assert "depth-" in str(done.exception)
    assert "failed, so the tables lack them" in str(done.exception)


def test_the_workspace_becomes_a_repository_once(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the user's own configuration asks of a commit."""
    own = tmp_path_factory.mktemp("own")
    (own / "commit-msg").write_text("#!/bin/sh\nexit 1\n")
    (own / "commit-msg").chmod(0o755)
    (own / "config").write_text(f"[commit]\n\tgpgsign = true\n[gpg]\n\tprogram = none\n[core]\n\thooksPath = {own}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(own / "config"))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/cache").mkdir()
    (tmp_path / ".dvc/cache/data").touch()
    (tmp_path / ".dvc/.gitignore").write_text(UNTRACKED)
    (tmp_path / "params.yaml").touch()
    command._init_repository("paper-cpu, cpu")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert git(tmp_path, "log", "--format=%s %an") == "paper-cpu, cpu leanresnet\n"
    assert git(tmp_path, "ls-files") == ".dvc/.gitignore\nparams.yaml\n"
    command._init_repository("another")
    assert git(tmp_path, "rev-parse", "HEAD") == head
