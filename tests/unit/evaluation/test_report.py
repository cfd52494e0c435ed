"""The files of an evaluation, read back."""

from pathlib import Path

import pytest

from leanresnet.errors import DataError, StorageError
from leanresnet.evaluation.report import accuracy_by_class
from leanresnet.files import save_csv


def test_the_accuracy_of_each_class_is_its_share_of_right_predictions(tmp_path: Path) -> None:
    rows = [["cat", "cat"], ["cat", "dog"], ["dog", "dog"], ["cat", "cat"], ["owl", "cat"], ["cat", "owl"]]
    save_csv(["true", "predicted"], rows, tmp_path / "confusion.csv")
    assert accuracy_by_class(tmp_path) == {"cat": 0.5, "dog": 1.0, "owl": 0.0}


@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", b"true,predicted\n\xff,cat\n", b'true,predicted\n"' + b"x" * 200_000]
)
def test_another_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "confusion.csv").write_bytes(content)
    with pytest.raises(DataError, match="not a table of predictions, expected: the columns true and predicted"):
        accuracy_by_class(tmp_path)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"confusion\.csv: cannot be read"):
        accuracy_by_class(tmp_path)
