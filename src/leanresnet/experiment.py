"""One model as one experiment: fit, keep the best epoch, write the outputs, track it all.

`train` and `distill` are both one call to `run_experiment`; they differ in the criterion
they hand over and in what they measure on validation.
"""

import csv
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from leanresnet import checkpoint, pictures, tracking
from leanresnet.assembly import assemble
from leanresnet.config import Recipe, flatten
from leanresnet.data.batches import EvalBatches
from leanresnet.data.splits import Split, load_split
from leanresnet.device import describe, engine
from leanresnet.errors import ConfigError, DataError, StorageError
from leanresnet.evaluation import MEASURES, Measure
from leanresnet.files import file_hashes, load_json, save_csv, save_figure, save_json
from leanresnet.models.budget import check_budget
from leanresnet.trainer import Criterion, Fitted, fit

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
    name: str, recipe: Recipe, lesson: Lesson, data: tuple[Path, Path], outputs: Outputs, device: torch.device
) -> None:
    """Train `recipe` and write the model, its history and its summary.

    Args:
        data: the files of the training and of the validation split.

    Raises:
        ConfigError: the model exceeds its budget, or a batch is larger than the split.
        DivergedError: the loss became NaN or infinite.
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
    with _start_run(made_by) as run:
        run.set_tags({"device": describe(device), "torch": torch.__version__})
        fitted = _fit(recipe, lesson, train, validation, run, device)
        checkpoint.save_model(fitted.best_weights, recipe.model, train.classes, made_by, outputs.model)
        _write_results(fitted, outputs)
        _log_outputs(run, outputs)


def recorded_run(outputs: Outputs) -> str | None:
    """The id of the run that trained a model; made from the outputs when MLflow knows none.

    That is so when training was restored from DVC's cache, or ran while the server was away.
    """
    model = checkpoint.load_model(outputs.model)
    found = tracking.find_run(model.about["name"], model.sha256)
    if found is not None:
        return found
    with _start_run(model.about) as run:
        unknown = dict.fromkeys(("git.commit", "git.dirty", "device", "torch"), "unknown")
        run.set_tags({"leanresnet.recorded": "from outputs", **unknown})
        run.log_history(read_history(outputs.history))
        _log_outputs(run, outputs)
    return run.run_id


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


def _fit(
    recipe: Recipe, lesson: Lesson, train: Split, validation: Split, run: tracking.Run, device: torch.device
) -> Fitted:
    with engine(device, recipe.deterministic):
        assembly = assemble(recipe, lesson.criterion, train, device)
        return fit(
            assembly.net,
            assembly.batches,
            EvalBatches(validation, recipe.batch_size, device),
            assembly.loop,
            epochs=recipe.epochs,
            seed=recipe.seed,
            ema_decay=recipe.ema_decay,
            measures=lesson.measures,
            log_metrics=run.log_metrics,
        )


def _write_results(fitted: Fitted, outputs: Outputs) -> None:
    columns = list(fitted.history[0])
    rows = [[epoch, *row.values()] for epoch, row in enumerate(fitted.history, start=1)]
    save_csv(["epoch", *columns], rows, outputs.history)
    best = fitted.history[fitted.best_epoch - 1]
    save_json({"best_epoch": fitted.best_epoch, **best}, outputs.summary)
    save_figure(pictures.curves(fitted.history, fitted.best_epoch), outputs.curves)


def _start_run(made_by: dict[str, Any]) -> AbstractContextManager[tracking.Run]:
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
    return tracking.start_run(name, params, tags)


def _log_outputs(run: tracking.Run, outputs: Outputs) -> None:
    """All that is known of a finished training once its outputs are written."""
    model = checkpoint.load_model(outputs.model)
    about, summary = model.about, load_json(outputs.summary)
    run.set_tags({tracking.WEIGHTS_TAG: model.sha256, "dvc.weights_md5": model.md5})
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
    run.log_model(model.net)
    teacher = about["teacher_sha256"]
    teacher_run = tracking.find_run(about["params"]["distill.teacher"], teacher) if teacher else None
    note = f"{model.parameters:,} parameters, {model.macs / 1e6:.1f} million MACs."
    if teacher_run:
        run.set_tags({"teacher.run_id": teacher_run})
        note += f" Distilled from [its teacher]({tracking.run_link(teacher_run)})."
    run.set_tags({"mlflow.note.content": note})
