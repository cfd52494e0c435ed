"""The images on which two evaluated models differ, from their predictions on the test split, which MLflow keeps."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leanresnet.analysis import runs
from leanresnet.analysis.runs import RunRecord
from leanresnet.errors import DataError
from leanresnet.evaluation.report import PREDICTIONS, read_predictions
from leanresnet.tracking.events import RESULTS

ANSWERS = f"{RESULTS}/{PREDICTIONS}"


@dataclass(frozen=True)
class Disagreement:
    """The predictions of two models.

    Attributes:
        first, second: the runs of the models.
        truth: the true classes by name, in the order of the test split.
        answers: the predicted classes of both models, likewise.
    """

    first: RunRecord
    second: RunRecord
    truth: list[str]
    answers: tuple[list[str], list[str]]

    @property
    def classes(self) -> list[str]:
        return sorted({*self.truth, *self.answers[0], *self.answers[1]})

    @property
    def where(self) -> list[int]:
        """Indices of the images for which the models predict different classes."""
        return [place for place, (one, other) in enumerate(zip(*self.answers, strict=True)) if one != other]

    def counts(self) -> dict[str, int]:
        """Return the number of images by which of the models are right; the numbers add up to all images."""
        who = Counter((one == true, other == true) for true, one, other in zip(self.truth, *self.answers, strict=True))
        return {
            "both are": who[True, True],
            "only the first is": who[True, False],
            "only the second is": who[False, True],
            "neither is": who[False, False],
        }

    def confusion(self) -> np.ndarray:
        """Return the confusion matrix of the first model minus that of the second, (classes, classes).

        There is a row per true class and a column per predicted class.
        """
        place = {name: number for number, name in enumerate(self.classes)}
        difference = np.zeros((len(place), len(place)), dtype=int)
        for predictions, sign in zip(self.answers, (1, -1), strict=True):
            for true, predicted in zip(self.truth, predictions, strict=True):
                difference[place[true], place[predicted]] += sign
        return difference


def disagreement(first: RunRecord, second: RunRecord) -> Disagreement | None:
    """Compare the predictions of two runs; return None if one of them was not evaluated.

    Raises:
        DataError: if they were evaluated on different images, or a file is not one that an evaluation writes.
        StorageError: if MLflow cannot be reached.
    """
    found = [_answers(run) for run in (first, second)]
    if found[0] is None or found[1] is None:
        return None
    (truth, one), (other_truth, other) = found[0], found[1]
    if truth != other_truth:
        raise DataError(f"runs {first.run_id} and {second.run_id}: evaluated on different images, expected: the same")
    return Disagreement(first, second, truth, (one, other))


def _answers(run: RunRecord) -> tuple[list[str], list[str]] | None:
    """Return (true classes, predicted classes) of a run by name, or None if it was not evaluated."""
    with tempfile.TemporaryDirectory() as folder:
        path = runs.download(run.run_id, ANSWERS, Path(folder))
        if path is None:
            return None
        try:
            pairs = read_predictions(path)
        except DataError as error:
            raise DataError(
                f"run {run.run_id}: {ANSWERS} has no predictions, expected: a file that an evaluation wrote"
            ) from error
    return [true for true, _ in pairs], [predicted for _, predicted in pairs]
