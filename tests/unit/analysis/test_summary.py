"""The table of a workspace, from reports that may be anything."""

import math
from pathlib import Path
from typing import Any

import pytest
from helpers import put

from leanresnet.analysis.summary import summary
from leanresnet.errors import DataError, StorageError
from leanresnet.files import save_json

MEASURED = {"loss": 0.5, "accuracy": 0.875, "teacher_agreement": 1, "teacher_gap": -0.025}
REPORT: dict[str, Any] = {
    "model/parameters": 5266,
    "model/macs": 1_400_000,
    "model/size_bytes": 30_000,
    **{f"{split}{name}": value for split in ("val/evaluated_", "test/") for name, value in MEASURED.items()},
    "test/calibration_error": 0.25,
}


def test_a_row_a_model(tmp_path: Path) -> None:
    save_json(REPORT, tmp_path / "student" / "test.json")
    header, row = summary(tmp_path).splitlines()
    assert header.split("  ")[0] == "model"
    assert row.split() == ["student", "5,266", "1.4", "M", "87.50%", "87.50%", "-2.50"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model/parameters", "\x1b[31m"),
        ("model/parameters", -1),
        ("model/macs", None),
        ("val/evaluated_accuracy", 2.0),
        ("val/evaluated_accuracy", True),
        ("test/accuracy", []),
        ("test/teacher_gap", "1"),
    ],
)
def test_a_report_of_other_content_is_refused(tmp_path: Path, key: str, value: object) -> None:
    save_json(put(REPORT, {key: value}), tmp_path / "student" / "test.json")
    with pytest.raises(DataError, match=rf"test\.json: not an evaluation's report \({key}: .*\), expected: "):
        summary(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "0", '"text"'])
def test_a_report_that_is_no_section_is_refused(tmp_path: Path, text: str) -> None:
    save_json(REPORT, tmp_path / "student" / "test.json")
    (tmp_path / "student" / "test.json").write_text(text)
    with pytest.raises(DataError, match=r"not an evaluation's report \(the top level: "):
        summary(tmp_path)


def test_a_number_beyond_all_numbers_is_refused(tmp_path: Path) -> None:
    """JSON has no infinity, and 1e999 is one where it is read."""
    save_json(put(REPORT, {"test/loss": 0.123}), tmp_path / "student" / "test.json")
    text = (tmp_path / "student" / "test.json").read_text()
    (tmp_path / "student" / "test.json").write_text(text.replace("0.123", "1e999"))
    with pytest.raises(DataError, match=r"\(test/loss: Input should be a finite number\)"):
        summary(tmp_path)
    with pytest.raises(DataError, match="is NaN or infinite"):
        save_json(put(REPORT, {"test/loss": math.nan}), tmp_path / "student" / "test.json")


def test_a_folder_without_a_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no evaluated model"):
        summary(tmp_path)
