"""The files of a training."""

import json
from pathlib import Path

import pytest

from leanresnet.training import results
from leanresnet.training.curves import curves, limits


def test_the_curves_have_the_name_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(results, "save_figure", lambda figure, _: titles.append(figure.get_suptitle()))
    row = {f"{split}/{name}": 0.5 for split in ("train", "val") for name in ("loss", "accuracy")}
    results.save_results([row], 1, results.Outputs(tmp_path, tmp_path / "student"))
    assert titles == ["student"]


HISTORY = [
    {"train/loss": 0.9, "train/accuracy": 0.1, "val/loss": 0.8, "val/accuracy": 0.2},
    {"train/loss": 0.7, "train/accuracy": 0.4, "val/loss": 0.5, "val/accuracy": 0.6},
    {"train/loss": 0.3, "train/accuracy": 0.7, "val/loss": 0.6, "val/accuracy": 0.5},
]


def test_the_summary_is_the_row_of_the_best_epoch(tmp_path: Path) -> None:
    outputs = results.Outputs(tmp_path, tmp_path / "student")
    results.save_results(HISTORY, 2, outputs)
    assert json.loads(outputs.summary.read_text()) == {"best_epoch": 2, **HISTORY[1]}
    assert results.read_history(outputs.history) == HISTORY


def test_the_curves_are_those_of_both_splits_by_epoch() -> None:
    for axes, name in zip(curves("student", HISTORY, 2).axes, ("loss", "accuracy"), strict=True):
        found = {line.get_label(): [list(values) for values in line.get_data()] for line in axes.lines}
        assert found == {
            "train": [[1, 2, 3], [row[f"train/{name}"] for row in HISTORY]],
            "val": [[1, 2, 3], [row[f"val/{name}"] for row in HISTORY]],
            "best epoch: 2": [[2, 2], [0, 1]],
        }
        assert axes.get_ylabel() == name


@pytest.mark.parametrize(
    ("by_curve", "expected"),
    [
        ([[9.0, 1.0, 2.0, 2.0, 3.0]], (0.9, 3.1)),
        ([[9.0, 1.0, 2.0, 2.0, 3.0], [5.0, 3.0]], (0.8, 5.2)),
        ([[0.5, float("nan"), float("inf")]], (0.475, 0.525)),
        ([[0.0]], (-1, 1)),
        ([[float("nan")], []], None),
    ],
)
def test_an_axis_has_the_values_of_all_but_the_first_epochs(
    by_curve: list[list[float]], expected: tuple[float, float] | None
) -> None:
    assert limits(by_curve) == (expected and pytest.approx(expected))


@pytest.mark.parametrize(("epochs", "markers"), [(50, {"."}), (51, {""})])
def test_the_epochs_of_a_long_training_have_no_markers(epochs: int, markers: set[str]) -> None:
    for axes in curves("student", HISTORY[:1] * epochs, 2).axes:
        assert {line.get_marker() for line in axes.lines[:2]} == markers
