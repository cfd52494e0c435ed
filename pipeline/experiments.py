"""Command experiments: the study's questions are run through DVC's queue."""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.init import init
from pipeline.options import Command, Name, beside_or_in_workspace
from pipeline.workspace import dvc, reason, released

if TYPE_CHECKING:
    from leanresnet.scaffold.questions import Experiment

QUESTIONS = released("experiments")
# DVC writes the process id of each worker of the queue to a file here.
WORKERS = Path(".dvc/tmp/exps/celery")
EXTERNAL = Path("models/external")
# How often it is looked whether all workers live.
WATCH_SECONDS = 30.0


def _question_names() -> list[str]:
    from leanresnet.scaffold.questions import question_names

    return question_names(QUESTIONS)


def question_options(command: Command) -> Command:
    """Add the argument `questions` and the option `--scale` to a command."""
    scale = click.option(
        "--scale",
        type=click.Choice(["cpu", "gpu", "long"]),
        default="cpu",
        show_default=True,
        help="What the runs start from: the study at its own size (gpu, presets/paper.yaml), reduced (cpu, "
        "presets/paper-cpu.yaml), or the recipe long reduced (long, presets/long-cpu.yaml).",
    )
    decorate: Callable[[Command], Command] = click.argument(
        "questions", nargs=-1, type=Name(_question_names), metavar="[QUESTION]..."
    )
    return decorate(scale(command))


@click.group()
def experiments() -> None:
    """Run or list the study's questions.

    A question is a file of experiments/, with a list of runs.
    """


@experiments.command("list")
@question_options
def list_(questions: tuple[str, ...], scale: str) -> None:
    """Print the runs of each QUESTION, by default of all, in the order of the queue.

    Each line has the name of the experiment, DVC's stage, and the values for `dvc exp run --set-param`.
    """
    known, asked = _load(questions, scale)
    from leanresnet.scaffold.questions import choose

    for each in choose(known, asked, known):
        click.echo(" ".join([each.name, each.target, *each.overrides]))


@experiments.command("run")
@question_options
@click.pass_context
def run(context: click.Context, questions: tuple[str, ...], scale: str) -> None:
    """Run the experiments of each QUESTION, by default of all, and write a table and a picture for each.

    DVC's queue runs them in the workspace .experiments/SCALE. An experiment that has run is not run again.
    """
    from leanresnet.scaffold.questions import REFERENCE, SCALES, choose

    known, asked = _load(questions, scale)
    preset, jobs = SCALES[scale]
    if jobs > 1:
        cores = len(os.sched_getaffinity(0))
        os.environ.setdefault("OMP_NUM_THREADS", str(-(-cores // jobs)))
    space = beside_or_in_workspace(Path(".experiments", scale))
    if not (space / "dvc.yaml").exists():
        context.invoke(init, folder=space, preset=preset)
    with contextlib.chdir(space):
        _init_repository(f"{preset}, {scale}")
        _stop_workers()
        have_run = _dvc("exp", "list", "--name-only").split()
        chosen = choose(known, asked, have_run)
        _check_values(preset, chosen, have_run)
        _run_queue(chosen, known, have_run, jobs)
        # DVC ends with 0 even if experiments of the queue have failed.
        have_run = _dvc("exp", "list", "--name-only").split()
        failed = [each.name for each in chosen if each.name not in have_run]
        from leanresnet.analysis.comparison import compare, select
        from leanresnet.analysis.dvc_experiments import weights_of_experiments

        shown = [known[name] for name in have_run if name in known]
        models = {each.name: each.model for each in shown}
        here = weights_of_experiments(Path(), [REFERENCE, *asked])
        for question in asked:
            if not {question, REFERENCE} & {each.question for each in shown}:
                continue
            runs = [
                run
                for run in select([], [question, REFERENCE], here)
                # A server may have runs of another workspace, whose experiments have the same names.
                if any(models.get(name) == run.model for name in run.experiments)
            ]
            of_reference = [run.run_id for run in runs if REFERENCE in run.experiments]
            found = compare(runs, against=of_reference[-1] if of_reference else None)
            click.echo("\n\n".join([found.markdown(), *found.notes]))
            found.write(Path("results", question))
        if failed:
            from leanresnet.errors import StorageError

            missing = f"{', '.join(failed)}: failed, so the tables lack them"
            raise StorageError(f"{space}: {missing}, expected: all experiments to run; DVC's messages are above")


def _load(questions: Sequence[str], scale: str) -> tuple[dict[str, "Experiment"], list[str]]:
    """Return all experiments of the scale by name, and the names of the questions, by default all of the scale."""
    from leanresnet.scaffold.questions import REFERENCE, check_names, load_experiments

    check_names(questions, QUESTIONS)
    known = load_experiments(QUESTIONS, scale, released("presets"))
    everything = dict.fromkeys(each.question for each in known.values() if each.question != REFERENCE)
    return known, list(dict.fromkeys(questions) or everything)


def _init_repository(message: str) -> None:
    """Make the data, and a git repository with one commit, because DVC's queue stores each experiment as a commit.

    If there is a commit already, nothing is done.
    """
    from leanresnet.errors import StorageError
    from leanresnet.tracking.git import git

    if Path(".git").exists() and git(Path(), "rev-parse", "--verify", "HEAD"):
        return
    _dvc("repro", "split", shown=True)
    _dvc("config", "core.no_scm", "false")
    # The commit needs nothing of the user's own configuration, such as a name, a key to sign with, or a hook.
    settings = (
        "user.name=leanresnet",
        "user.email=leanresnet@localhost",
        "commit.gpgsign=false",
        "core.hooksPath=/dev/null",
    )
    own = [part for setting in settings for part in ("-c", setting)]
    for command in (("init",), ("add", "--all"), (*own, "commit", "--quiet", "--message", message)):
        if git(Path(), *command) is None:
            raise StorageError(f"{Path.cwd()}: git {' '.join(command)} failed")


def _check_values(preset: str, chosen: Sequence["Experiment"], have_run: Sequence[str]) -> None:
    """Check that params.yaml equals the preset, and that each experiment ran with its present values and teachers."""
    from leanresnet.analysis.dvc_experiments import params_of_experiment
    from leanresnet.config.load import load_params
    from leanresnet.errors import ConfigError
    from leanresnet.scaffold.presets import load_preset
    from leanresnet.scaffold.questions import check_values, outdated

    base, path = load_preset(preset, released("presets")).params, Path("params.yaml").resolve()
    check_values(f"{path}, which has to equal presets/{preset}.yaml", load_params(path), base)
    reasons = outdated(chosen, have_run, base, lambda name: params_of_experiment(Path(), name))
    if reasons:
        remedy = f"`dvc exp remove {' '.join(reasons)}` in {path.parent} lets them run again"
        raise ConfigError(f"{next(iter(reasons.values()))}; {remedy}")


def _run_queue(
    chosen: Sequence["Experiment"], known: dict[str, "Experiment"], have_run: Sequence[str], jobs: int
) -> None:
    """Queue the chosen experiments that have not run yet, and run them.

    Args:
        chosen: the experiments, in the order of the queue.
        known: all experiments at the scale by name.
        have_run: names of the experiments that have run.
        jobs: number of experiments that run at the same time.
    """
    _dvc("queue", "remove", "--queued", "--failed", "--success")
    teachers: tuple[str, ...] = ()
    for each in chosen:
        if each.name in have_run:
            continue
        if each.learns_from not in ((), teachers):
            # The queue may hold the teachers, and students of the previous content of models/external, so it runs now.
            _run_queued(jobs)
            _stop_workers()
            _copy_teachers([known[name] for name in each.learns_from])
            teachers = each.learns_from
        # By default, DVC does not copy this folder to the place where the experiment runs.
        beside = ["--copy-paths", str(EXTERNAL)] if each.learns_from else []
        values = [part for override in each.overrides for part in ("--set-param", override)]
        _dvc("exp", "run", "--quiet", "--queue", "--name", each.name, *beside, *values, each.target)
    _run_queued(jobs)


def _run_queued(jobs: int) -> None:
    """Run what is queued, and replace workers that end before the queue is empty.

    A worker that reads a message while another process writes it ends after its experiment
    (https://github.com/celery/kombu/issues/1551), and without workers, `dvc exp run --run-all` waits for ever.
    """
    from leanresnet.errors import StorageError

    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            # What DVC refuses at the moment is tried again.
            with contextlib.suppress(StorageError, OSError):
                if len(_workers()) < jobs and "Queued" in _dvc("queue", "status"):
                    _dvc("queue", "start", "--jobs", str(jobs))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        _dvc("exp", "run", "--run-all", "--jobs", str(jobs), shown=True)
    finally:
        ended.set()
        watcher.join()


def _stop_workers() -> None:
    """Stop the workers of DVC's queue, and wait until they have ended; they finish their experiments first.

    A worker ends by itself some seconds after the queue was empty. It may still take an experiment that is queued while
    it ends, does not run it, and `dvc exp run --run-all` then waits for ever
    (https://github.com/treeverse/dvc/issues/10398).
    """
    if _workers():
        click.echo("waiting for the workers of DVC's queue to end; Ctrl-C leaves what they run running", err=True)
        _dvc("queue", "stop")
    while _workers():
        time.sleep(0.1)


def _workers() -> list[str]:
    """Return the names of the workers that have not ended."""
    import psutil

    found = []
    for path in WORKERS.glob("*.pid"):
        # A worker that has ended may leave its file behind, and its number to another process.
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(path.read_text()))
            if process.status() != psutil.STATUS_ZOMBIE and "queue-worker" in process.cmdline():
                found.append(path.stem)
    return found


def _copy_teachers(teachers: Sequence["Experiment"]) -> None:
    """Copy the model of an experiment to models/external; of several experiments, the ensemble of their models."""
    from leanresnet.models.checkpoint import load_model, save_ensemble

    with tempfile.TemporaryDirectory() as folder:
        # They are sorted because the order of the members changes the bytes of the ensemble.
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
    """Run a command of DVC and return its output.

    Args:
        shown: whether the output goes to the terminal; then the returned text is empty.

    Raises:
        StorageError: if the command fails.
    """
    from leanresnet.errors import StorageError

    done = dvc(*arguments, shown=shown)
    if done.returncode:
        why = "see its messages above" if shown else reason(done)
        raise StorageError(f"{Path.cwd()}: dvc {' '.join(arguments[:2])} failed ({why})")
    return done.stdout or ""
