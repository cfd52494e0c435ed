"""Where two evaluated models differ, from their answers on the test split that MLflow keeps."""

import csv
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leanresnet.analysis import runs as registry
from leanresnet.analysis.runs import RunRecord
from leanresnet.errors import DataError

ANSWERS = "results/confusion.csv"


@dataclass(frozen=True)
class Disagreement:
    """Answers of two models, as class names, in the order of the test split."""

    first: RunRecord
    second: RunRecord
    truth: list[str]
    answers: tuple[list[str], list[str]]

    @property
    def classes(self) -> list[str]:
        return sorted({*self.truth, *self.answers[0], *self.answers[1]})

    @property
    def where(self) -> list[int]:
        """Indices of the images on which they gave different answers."""
        return [place for place, (one, other) in enumerate(zip(*self.answers, strict=True)) if one != other]

    def counts(self) -> dict[str, int]:
        """Images by who is right; they add up to all."""
        who = Counter((one == true, other == true) for true, one, other in zip(self.truth, *self.answers, strict=True))
        return {
            "both are": who[True, True],
            "only the first is": who[True, False],
            "only the second is": who[False, True],
            "neither is": who[False, False],
        }

    def confusion(self) -> np.ndarray:
        """(classes, classes): how much more often the first gave an answer, a row a true class."""
        place = {name: number for number, name in enumerate(self.classes)}
        difference = np.zeros((len(place), len(place)), dtype=int)
        for answers, sign in zip(self.answers, (1, -1), strict=True):
            for true, said in zip(self.truth, answers, strict=True):
                difference[place[true], place[said]] += sign
        return difference


def disagreement(first: RunRecord, second: RunRecord) -> Disagreement | None:
    """None where one of the two was not evaluated.

    Raises:
        DataError: they were evaluated on different images, or one has other answers than an evaluation writes.
        StorageError: MLflow cannot be asked.
    """
    found = [_answers(run) for run in (first, second)]
    if found[0] is None or found[1] is None:
        return None
    (truth, one), (other_truth, other) = found[0], found[1]
    if truth != other_truth:
        raise DataError(f"runs {first.run_id} and {second.run_id}: evaluated on different images, expected: the same")
    return Disagreement(first, second, truth, (one, other))


def _answers(run: RunRecord) -> tuple[list[str], list[str]] | None:
    """(truth, answers)"""
    with tempfile.TemporaryDirectory() as folder:
        path = registry.download(run.run_id, ANSWERS, Path(folder))
        if path is None:
            return None
        try:
            with path.open(newline="", encoding="utf-8") as file:
                pairs = [(row["true"], row["predicted"]) for row in csv.DictReader(file, restval="")]
        except (KeyError, ValueError, csv.Error) as error:
            raise DataError(
                f"run {run.run_id}: {ANSWERS} is none of leanresnet's, expected: an evaluation's"
            ) from error
    return [true for true, _ in pairs], [said for _, said in pairs]
