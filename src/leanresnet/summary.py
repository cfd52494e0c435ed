"""The finished models of a workspace side by side, from their outputs."""

from pathlib import Path

from pydantic import ConfigDict

from leanresnet.config import Finite, Positive, Section, Share
from leanresnet.errors import StorageError
from leanresnet.files import load_section

MODELS = ("baseline", "teacher", "student")


class Measured(Section):
    """What was measured on one split."""

    model_config = ConfigDict(extra="ignore")

    loss: Finite
    accuracy: Share
    teacher_agreement: Share
    teacher_gap: Finite


class Tested(Measured):
    calibration_error: Share
    accuracy_by_class: dict[str, Share]


class Report(Section):
    """test.json."""

    model_config = ConfigDict(extra="ignore")

    parameters: Positive
    macs: Positive
    size_bytes: Positive
    val: Measured
    test: Tested


def load_report(results: Path) -> Report:
    """The evaluation of the model whose results these are.

    Raises:
        StorageError: test.json cannot be read or is not JSON.
        DataError: it holds something else.
    """
    return load_section(results / "test.json", Report, "an evaluation's report")


def comparison(results: Path) -> str:
    """A table of the models whose evaluation is in `results`, a row each.

    Teacher gap: the teacher's test accuracy minus the model's, in percentage points.

    Raises:
        StorageError: no model has been evaluated there, or a report cannot be read.
        DataError: a report holds something else.
    """
    rows = [("model", "parameters", "MACs", "validation", "test", "teacher gap")]
    for name in MODELS:
        if not (results / name / "test.json").exists():
            continue
        report = load_report(results / name)
        rows.append(
            (
                name,
                f"{report.parameters:,}",
                f"{report.macs / 1e6:,.1f} M",
                f"{report.val.accuracy:.2%}",
                f"{report.test.accuracy:.2%}",
                f"{100 * report.test.teacher_gap:+.2f}",
            )
        )
    if len(rows) == 1:
        raise StorageError(f"{results}: no evaluated model, accepted: a folder with <model>/test.json")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
