"""The study's questions through DVC's queue."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.init import init
from pipeline.options import Command, in_workspace
from pipeline.workspace import dvc, reason, released

if TYPE_CHECKING:
    from leanresnet.scaffold.questions import Experiment

QUESTIONS = released("experiments")
EXTERNAL = Path("models/external")


def question_options(command: Command) -> Command:
    """Questions, all where none is named, and a scale."""
    scale = click.option(
        "--scale",
        type=click.Choice(["cpu", "gpu"]),
        default="cpu",
        show_default=True,
        help="gpu is the study's own size, presets/paper.yaml; cpu its reduction, presets/paper-cpu.yaml.",
    )
    decorate: Callable[[Command], Command] = click.argument("questions", nargs=-1, metavar="[QUESTION]...")
    return decorate(scale(command))


@click.group()
def experiments() -> None:
    """Ask the study's questions, which are the files of experiments/."""


@experiments.command("list")
@question_options
def list_(questions: tuple[str, ...], scale: str) -> None:
    """Print the runs of the questions, all without QUESTION, in the order of the queue.

    A line a run: the experiment's name, DVC's stage, and the values that `dvc exp run --set-param` takes.
    """
    known, asked = _load(questions, scale)
    from leanresnet.scaffold.questions import choose

    for each in choose(known, asked, known):
        click.echo(" ".join([each.name, each.target, *each.overrides]))


@experiments.command("run")
@question_options
@click.pass_context
def run(context: click.Context, questions: tuple[str, ...], scale: str) -> None:
    """Run what the questions ask for, all without QUESTION, and write a table and a picture of each.

    The runs go through DVC's queue in .experiments/SCALE, a workspace of their own. One that has run is
    not run again.
    """
    from leanresnet.scaffold.questions import REFERENCE, SCALES, choose

    known, asked = _load(questions, scale)
    preset, jobs = SCALES[scale]
    if jobs > 1:
        cores = len(os.sched_getaffinity(0))
        os.environ.setdefault("OMP_NUM_THREADS", str(-(-cores // jobs)))
    space = in_workspace(Path(".experiments", scale))
    if not (space / "dvc.yaml").exists():
        context.invoke(init, folder=space, preset=preset)
    with contextlib.chdir(space):
        _commit(f"{preset}, {scale}")
        have_run = _dvc("exp", "list", "--name-only").split()
        _ask(choose(known, asked, have_run), known, have_run, jobs)
        from leanresnet.analysis.comparison import compare, select

        for question in asked:
            found = compare(select([], [question, REFERENCE]))
            click.echo(found.markdown())
            found.write(Path("results", question))


def _load(questions: Sequence[str], scale: str) -> tuple[dict[str, "Experiment"], list[str]]:
    """All experiments at the scale, and the questions that are asked."""
    from leanresnet.scaffold.questions import check_names, load_experiments, question_names

    check_names(questions, QUESTIONS)
    return load_experiments(QUESTIONS, scale, released("presets")), list(questions) or question_names(QUESTIONS)


def _commit(message: str) -> None:
    """The data, and the repository that the queue needs, for it keeps each experiment as a commit."""
    from leanresnet.errors import StorageError
    from leanresnet.tracking.git import git

    if Path(".git").exists() and git(Path(), "rev-parse", "--verify", "HEAD"):
        return
    _dvc("repro", "split", shown=True)
    _dvc("config", "core.no_scm", "false")
    author = ("-c", "user.name=leanresnet", "-c", "user.email=leanresnet@localhost")
    for command in (("init",), ("add", "--all"), (*author, "commit", "--quiet", "--message", message)):
        if git(Path(), *command) is None:
            raise StorageError(f"{Path.cwd()}: git {' '.join(command)} failed")


def _ask(chosen: Sequence["Experiment"], known: dict[str, "Experiment"], have_run: Sequence[str], jobs: int) -> None:
    """Queue what has not run, and run it."""
    _dvc("queue", "remove", "--queued", "--failed", "--success")
    run_all = ("exp", "run", "--run-all", "--jobs", str(jobs))
    handed: tuple[str, ...] = ()
    for each in chosen:
        if each.name in have_run:
            continue
        if each.learns_from not in ((), handed):
            # They may be in the queue, and so may those that learn from the models that are handed on so far.
            _dvc(*run_all, shown=True)
            _hand_on([known[name] for name in each.learns_from])
            handed = each.learns_from
        # DVC would leave it where it is.
        beside = ["--copy-paths", str(EXTERNAL)] if each.learns_from else []
        values = [part for override in each.overrides for part in ("--set-param", override)]
        _dvc("exp", "run", "--quiet", "--queue", "--name", each.name, *beside, *values, each.target)
    _dvc(*run_all, shown=True)


def _hand_on(teachers: Sequence["Experiment"]) -> None:
    """Make models/external the model of this experiment, of several their ensemble."""
    from leanresnet.models.checkpoint import load_model, save_ensemble

    with tempfile.TemporaryDirectory() as folder:
        # Their order is a part of an ensemble's bytes.
        found = [Path(folder, each.name) for each in sorted(teachers, key=lambda each: each.name)]
        for each in teachers:
            out = str(Path(folder, each.name))
            _dvc("get", "--quiet", "--rev", each.name, ".", f"models/{each.model}", "--out", out)
        shutil.rmtree(EXTERNAL, ignore_errors=True)
        if len(found) == 1:
            shutil.copytree(found[0], EXTERNAL)
        else:
            save_ensemble([load_model(each) for each in found], EXTERNAL)


def _dvc(*arguments: str, shown: bool = False) -> str:
    """What DVC's command prints, unless that is shown as it comes; its failure is an error."""
    from leanresnet.errors import StorageError

    done = dvc(*arguments, shown=shown)
    if done.returncode:
        why = "its own lines say why" if shown else reason(done)
        raise StorageError(f"{Path.cwd()}: dvc {' '.join(arguments[:2])} failed ({why})")
    return done.stdout or ""
