"""What a training leaves behind: its files, and from them its run in MLflow."""

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from leanresnet import checkpoint, reporting
from leanresnet.config import Positive, Section, Share
from leanresnet.curves import curves
from leanresnet.errors import DataError, StorageError
from leanresnet.evaluation import Metrics
from leanresnet.files import load_section, save_csv, save_figure, save_json
from leanresnet.reporting import Run
from leanresnet.tracking import WEIGHTS_TAG


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

    def files(self) -> list[Path]:
        model = [self.model / name for name in (checkpoint.WEIGHTS, checkpoint.DESCRIPTION)]
        return [*model, self.history, self.summary, self.curves]


class Best(Section):
    """train.json, as far as a run is told of it."""

    model_config = ConfigDict(extra="ignore")

    best_epoch: Positive
    accuracy: Share = Field(alias="val/accuracy")


@contextmanager
def run_of(outputs: Outputs) -> Iterator[Run]:
    """The run that trained a model, to be added to; made from the outputs where MLflow knows none.

    That is so when training was restored from DVC's cache.
    """
    model, origin = checkpoint.load_model(outputs.model), checkpoint.load_origin(outputs.model)
    with reporting.add_to_run(*described(origin.model_dump()), (origin.name, model.sha256)) as run:
        with run.only_if_new():
            unknown = dict.fromkeys(("git.commit", "git.dirty", "device", "torch"), "unknown")
            run.set_tags({"leanresnet.recorded": "from outputs", **unknown})
            run.log_history(read_history(outputs.history))
            log_outputs(run, outputs)
            run.end("FINISHED")
        yield run


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of history.csv without the epoch, which is the row's number."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{key: _finite(value) for key, value in row.items() if key != "epoch"} for row in rows]
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: not a history ({error}), accepted: a file that training wrote") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def save_results(history: list[Metrics], best_epoch: int, outputs: Outputs) -> None:
    """The rows of epochs 1, 2, ..., the best of them, and a picture of all."""
    rows = [[epoch, *row.values()] for epoch, row in enumerate(history, start=1)]
    save_csv(["epoch", *history[0]], rows, outputs.history)
    save_json({"best_epoch": best_epoch, **history[best_epoch - 1]}, outputs.summary)
    save_figure(curves(history, best_epoch), outputs.curves)


def described(made_by: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, str]]:
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
    if made_by["teacher_sha256"]:
        tags["teacher.sha256"] = str(made_by["teacher_sha256"])
    return name, params, tags


def log_outputs(run: Run, outputs: Outputs) -> None:
    """All that is known of a finished training once its outputs are written."""
    model = checkpoint.load_model(outputs.model)
    about, summary = model.about, load_section(outputs.summary, Best, "a training's summary")
    run.set_tags({WEIGHTS_TAG: model.sha256, "dvc.weights_md5": model.md5})
    run.log_metrics(
        {
            "model/parameters": model.parameters,
            "model/macs": model.macs,
            "best_epoch": summary.best_epoch,
            "val/best_accuracy": summary.accuracy,
        },
        summary.best_epoch,
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
