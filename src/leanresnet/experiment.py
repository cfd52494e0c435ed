"""One model as one experiment: fit, keep the best epoch, write the outputs, track it all.

`train` and `distill` are both one call to `run_experiment`; they differ in the criterion
they hand over and in what they measure on validation.
"""

import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from leanresnet import checkpoint, pictures, reporting
from leanresnet.assembly import Assembly, assemble
from leanresnet.config import Recipe, flatten
from leanresnet.data.batches import EvalBatches
from leanresnet.data.splits import Split, load_split
from leanresnet.device import describe, engine
from leanresnet.distributed import ALONE, World, world
from leanresnet.errors import ConfigError, DataError, MemoryLimitError, StorageError
from leanresnet.evaluation import MEASURES, Measure, Metrics
from leanresnet.files import file_hashes, load_json, save_csv, save_figure, save_json
from leanresnet.interruption import stop_requests
from leanresnet.journal import new_id
from leanresnet.memory import is_out_of_memory, largest_fit
from leanresnet.models.budget import check_budget
from leanresnet.progress import Progress
from leanresnet.reporting import Run
from leanresnet.tracking import WEIGHTS_TAG
from leanresnet.trainer import Criterion, fit, objective_of, train_one_epoch
from leanresnet.work import FINISHED_KEPT, Keeper, Work, load_state, work_on

# Runs that were not distilled carry these too, so that runs compare without a missing column.
NOT_DISTILLED: dict[str, str | float] = {
    "distill.teacher": "none",
    "distill.alpha": 0.0,
    "distill.temperature": 1.0,
    "distill.beta": "none",
    "distill.attention": 0.0,
}


@dataclass(frozen=True)
class Outputs:
    """Where a model and its results go; both folders are given by dvc.yaml."""

    model: Path
    results: Path

    @property
    def history(self) -> Path:
        return self.results / "history.csv"

    @property
    def summary(self) -> Path:
        return self.results / "train.json"

    @property
    def curves(self) -> Path:
        return self.results / "curves.png"


@dataclass(frozen=True)
class Lesson:
    """What a stage adds to a recipe: its loss, what it measures on validation, and what it distills from.

    `key` is the recipe's place, "params.yaml: train.baseline". `params` are tracked as they are.
    `teacher_sha256` is of the teacher's weights.
    """

    stage: str
    key: str
    criterion: Criterion
    measures: dict[str, Measure] = field(default_factory=lambda: dict(MEASURES))
    params: dict[str, str | float] = field(default_factory=lambda: dict(NOT_DISTILLED))
    teacher_sha256: str | None = None


def run_experiment(
    name: str,
    recipe: Recipe,
    lesson: Lesson,
    data: tuple[Path, Path],
    outputs: Outputs,
    device: torch.device,
    seconds: float,
    extend: bool = False,
) -> None:
    """Train `recipe` and write the model, its history and its summary.

    A training of the same that was stopped goes on, in the same MLflow run. Of several processes, which
    torchrun starts, the first one writes and reports.

    Args:
        data: the files of the training and of the validation split.
        seconds: between two snapshots of a training.
        extend: go on from the finished training of the same for fewer epochs, as a child of its run.

    Raises:
        ConfigError: the model exceeds its budget, a batch is larger than the split, or there is nothing to extend.
        DivergedError: a loss became NaN or infinite.
        MemoryLimitError: a batch does not fit into memory.
        StoppedError: by SIGTERM, SIGINT or the death of dvc; the state is kept.
        SnapshotError: of a training that was stopped nothing whole is left.
        LostProcessError: one of several processes ended before its time.
    """
    check_budget(lesson.key, recipe.model, recipe.budget)
    train, validation = (load_split(path) for path in data)
    if recipe.batch_size > len(train):
        most = f"2 to {len(train)}, the training images of {data[0]}"
        raise ConfigError(f"{lesson.key}.batch_size = {recipe.batch_size}: accepted: {most}")
    made_by: dict[str, Any] = {
        "name": name,
        "stage": lesson.stage,
        "params": flatten(recipe) | lesson.params,
        "dataset": train.dataset,
        "train_md5": file_hashes(data[0])[0],
        "validation_md5": file_hashes(data[1])[0],
        "teacher_sha256": lesson.teacher_sha256,
    }
    with stop_requests() as requested, world() as processes:
        if recipe.batch_size % processes.size:
            accepted = f"a multiple of the {processes.size} processes that share a batch"
            raise ConfigError(f"{lesson.key}.batch_size = {recipe.batch_size}: accepted: {accepted}")
        training = _Training(recipe, lesson, train, validation, device, processes)
        if not processes.leads:
            training.run(None, lambda metrics, step: None, Keeper(None, seconds, requested, processes))
            return
        with work_on(made_by) as work:
            keeper = Keeper(work.snapshots, seconds, requested, processes)
            start, elsewhere = load_state(work.snapshots, device, processes)
            if start is None and (extend or work.extended_from):
                start, elsewhere = _extend(work, training)
            parent = work.parent(work.extended_from) if work.extended_from else None
            if work.extended_from:
                made_by["extended_from"] = work.extended_from
            run_id = work.run_id or new_id()
            work.keep_run_id(run_id)
            with reporting.start_run(*_described(made_by), run_id) as run:
                # Whatever became of the database since.
                run.log_history(start["history"] if start else [])
                run.set_tags({"device": describe(device), "torch": torch.__version__, "processes": str(processes.size)})
                if parent is not None and parent.run_id is not None:
                    run.log_parent(parent.run_id)
                if elsewhere:
                    warning = f"this training began elsewhere, so its bytes may differ: {elsewhere}"
                    print(f"warning: {warning}", file=sys.stderr)
                    run.set_tags({"leanresnet.resumed_from": elsewhere})
                fitted = training.run(start, run.log_metrics, keeper)
                keeper.save(fitted)
                checkpoint.save_model(fitted.best_weights, recipe.model, train.classes, made_by, outputs.model)
                _write_results(fitted, outputs)
                _log_outputs(run, outputs)
            work.finish(file_hashes(outputs.model / checkpoint.WEIGHTS)[0])


@dataclass(frozen=True)
class _Training:
    """All that a fit takes but its state, the same in each process."""

    recipe: Recipe
    lesson: Lesson
    train: Split
    validation: Split
    device: torch.device
    world: World

    def run(
        self, start: Mapping[str, Any] | None, log_metrics: Callable[[Metrics, int], None], keeper: Keeper
    ) -> Progress:
        """From the first process's `start`, where it gives one."""
        recipe = self.recipe
        with engine(self.device, recipe.deterministic):
            assembly = assemble(recipe, self.lesson.criterion, self.train, self.device, self.world)
            try:
                return fit(
                    assembly.net,
                    assembly.batches,
                    EvalBatches(self.validation, recipe.batch_size, self.device),
                    assembly.loop,
                    epochs=recipe.epochs,
                    seed=recipe.seed,
                    ema_decay=recipe.ema_decay,
                    measures=self.lesson.measures,
                    log_metrics=log_metrics,
                    start=self.world.receive(start),
                    offer=keeper,
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            fitting = self._fitting(assembly)
        hint = "none was found" if fitting is None else f"{fitting}, which was tried and fits"
        raise MemoryLimitError(f"{self.lesson.key}.batch_size = {recipe.batch_size}: out of memory, accepted: {hint}")

    def _fitting(self, assembly: Assembly) -> int | None:
        """A batch of which this process's share fits."""
        loop = replace(assembly.loop, objective=objective_of(assembly.net, self.lesson.criterion), world=ALONE)
        images, labels = next(assembly.batches.epoch(1))
        share = largest_fit(
            len(labels) // self.world.size,
            lambda count: train_one_epoch(assembly.net, [(images[:count], labels[:count])], loop),
        )
        return None if share is None else share * self.world.size


def _extend(work: Work, training: _Training) -> tuple[dict[str, Any] | None, str | None]:
    """The last state of the finished training with fewer epochs, and in what this machine differs."""
    parent = work.parent(work.extended_from)
    if parent is None:
        kept = f"accepted: with a finished training of the same but fewer epochs; the last {FINISHED_KEPT} are kept"
        raise ConfigError(f"{training.lesson.key}.epochs = {work.epochs} with --extend: {kept}")
    state, elsewhere = load_state(parent.snapshots, training.device, training.world)
    if state is not None:
        work.extend(parent)
        if training.recipe.schedule.name in ("linear", "onecycle"):
            # They are stretched over all epochs, so that of more epochs is another one.
            del state["schedule"]
    return state, elsewhere


@contextmanager
def run_of(outputs: Outputs) -> Iterator[Run]:
    """The run that trained a model, to be added to; made from the outputs where MLflow knows none.

    That is so when training was restored from DVC's cache.
    """
    model = checkpoint.load_model(outputs.model)
    with reporting.add_to_run(*_described(model.about), (model.about["name"], model.sha256)) as run:
        with run.only_if_new():
            unknown = dict.fromkeys(("git.commit", "git.dirty", "device", "torch"), "unknown")
            run.set_tags({"leanresnet.recorded": "from outputs", **unknown})
            run.log_history(read_history(outputs.history))
            _log_outputs(run, outputs)
            run.end("FINISHED")
        yield run


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of history.csv without the epoch, which is the row's number."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{key: float(value) for key, value in row.items() if key != "epoch"} for row in rows]
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a history ({error}), accepted: a file that training wrote") from error


def _write_results(fitted: Progress, outputs: Outputs) -> None:
    columns = list(fitted.history[0])
    rows = [[epoch, *row.values()] for epoch, row in enumerate(fitted.history, start=1)]
    save_csv(["epoch", *columns], rows, outputs.history)
    best = fitted.history[fitted.best_epoch - 1]
    save_json({"best_epoch": fitted.best_epoch, **best}, outputs.summary)
    save_figure(pictures.curves(fitted.history, fitted.best_epoch), outputs.curves)


def _described(made_by: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """A run's name, params and tags."""
    params = made_by["params"]
    name = f"{made_by['name']}-{params['optimizer.name']}-e{params['epochs']}"
    tags = {
        "model": str(made_by["name"]),
        "dvc.stage": str(made_by["stage"]),
        "dvc.train_md5": str(made_by["train_md5"]),
        "dvc.validation_md5": str(made_by["validation_md5"]),
        "dataset": str(made_by["dataset"]),
        "seed": str(params["seed"]),
    }
    return name, params, tags


def _log_outputs(run: Run, outputs: Outputs) -> None:
    """All that is known of a finished training once its outputs are written."""
    model = checkpoint.load_model(outputs.model)
    about, summary = model.about, load_json(outputs.summary)
    run.set_tags({WEIGHTS_TAG: model.sha256, "dvc.weights_md5": model.md5})
    run.log_metrics(
        {
            "model/parameters": model.parameters,
            "model/macs": model.macs,
            "best_epoch": summary["best_epoch"],
            "val/best_accuracy": summary["val/accuracy"],
        },
        summary["best_epoch"],
    )
    run.log_dataset(f"{about['dataset']}-train", about["train_md5"], "training")
    run.log_dataset(f"{about['dataset']}-validation", about["validation_md5"], "validation")
    for path in (outputs.model / checkpoint.WEIGHTS, outputs.model / checkpoint.DESCRIPTION):
        run.log_artifact(path, "checkpoint")
    for path in (outputs.history, outputs.summary, outputs.curves):
        run.log_artifact(path, "results")
    run.log_model("checkpoint")
    teacher = about["teacher_sha256"]
    note = f"{model.parameters:,} parameters, {model.macs / 1e6:.1f} million MACs."
    run.log_note(note, (about["params"]["distill.teacher"], teacher) if teacher else None)
