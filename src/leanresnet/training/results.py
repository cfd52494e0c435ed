"""The files that a training writes, their paths, and how they are read."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from leanresnet.errors import DataError
from leanresnet.files import not_read, save_csv, save_figure, save_json
from leanresnet.models.checkpoint import DESCRIPTION, WEIGHTS
from leanresnet.training.curves import curves
from leanresnet.training.validation import Metrics

# What the loop reports of an epoch beside its row of the history.
NOT_KEPT = {"val/best_accuracy", "images_per_second", "train_seconds"}


@dataclass(frozen=True)
class Outputs:
    """The folders of a model and of its results, which dvc.yaml determines, and the paths of the files in them."""

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
        model = [self.model / name for name in (WEIGHTS, DESCRIPTION)]
        return [*model, self.history, self.summary, self.curves]


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the rows of history.csv without the column `epoch`; the first row is epoch 1.

    Raises:
        StorageError: if the file cannot be read.
        DataError: if the file is not a history.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{key: _finite(value) for key, value in row.items() if key != "epoch"} for row in rows]
    except OSError as error:
        raise not_read(path, error) from error
    except (ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: not a history ({error}), expected: a file that training wrote") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def save_history(history: list[Metrics], path: Path) -> None:
    """Write history.csv with the metrics of epochs 1, 2, ..., which may be those of an unfinished training."""
    rows = [[epoch, *row.values()] for epoch, row in enumerate(history, start=1)]
    save_csv(["epoch", *history[0]], rows, path)


def save_results(history: list[Metrics], best_epoch: int, outputs: Outputs) -> None:
    """Write the rows of all epochs, the row of the best epoch, and the curves.

    Args:
        history: the metrics of epochs 1, 2, ...
    """
    save_history(history, outputs.history)
    save_json({"best_epoch": best_epoch, **history[best_epoch - 1]}, outputs.summary)
    save_figure(curves(outputs.results.name, history, best_epoch), outputs.curves)
