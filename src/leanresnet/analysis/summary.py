"""A table of the evaluated models of a workspace, from their outputs."""

from pathlib import Path

from leanresnet.analysis.tables import aligned
from leanresnet.config.schema import MODELS
from leanresnet.errors import StorageError
from leanresnet.evaluation.report import TEST, load_report


def summary(results: Path) -> str:
    """Return a table of the models whose evaluation is in `results`, as text with a row per model.

    The teacher gap is the test accuracy of the teacher minus that of the model, in percentage points.

    Raises:
        StorageError: if there is no evaluated model, or a report cannot be read.
        DataError: if a file is not a report.
    """
    rows = [("model", "parameters", "MACs", "validation", "test", "teacher gap")]
    for name in MODELS:
        if not (results / name / TEST).exists():
            continue
        report = load_report(results / name)
        rows.append(
            (
                name,
                f"{report.parameters:,}",
                f"{report.macs / 1e6:,.1f} M",
                f"{report.validation_accuracy:.2%}",
                f"{report.test_accuracy:.2%}",
                f"{100 * report.test_teacher_gap:+.2f}",
            )
        )
    if len(rows) == 1:
        raise StorageError(f"{results}: no evaluated model, expected: a folder with <model>/{TEST}")
    return aligned(rows, range(1, len(rows[0])))
