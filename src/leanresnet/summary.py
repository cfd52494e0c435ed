"""The finished models of a workspace side by side, from their outputs."""

from pathlib import Path

from leanresnet.errors import StorageError
from leanresnet.files import load_json

MODELS = ("baseline", "teacher", "student")


def comparison(results: Path) -> str:
    """A table of the models whose evaluation is in `results`, a row each.

    Teacher gap: the teacher's test accuracy minus the model's, in percentage points.

    Raises:
        StorageError: no model has been evaluated there.
    """
    rows = [("model", "parameters", "MACs", "validation", "test", "teacher gap")]
    for name in MODELS:
        if not (results / name / "test.json").exists():
            continue
        test = load_json(results / name / "test.json")
        rows.append(
            (
                name,
                f"{test['parameters']:,}",
                f"{test['macs'] / 1e6:,.1f} M",
                f"{test['val']['accuracy']:.2%}",
                f"{test['test']['accuracy']:.2%}",
                f"{100 * test['test']['teacher_gap']:+.2f}",
            )
        )
    if len(rows) == 1:
        raise StorageError(f"{results}: no evaluated model, accepted: a folder with <model>/test.json")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
