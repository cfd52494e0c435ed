"""The finished models of a workspace side by side, from their outputs."""

from pathlib import Path

from leanresnet.errors import StorageError
from leanresnet.evaluation.report import load_report

MODELS = ("baseline", "teacher", "student")


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
        raise StorageError(f"{results}: no evaluated model, expected: a folder with <model>/test.json")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
