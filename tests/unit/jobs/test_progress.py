"""What a person sees of a training."""

import sys
import time
from pathlib import Path

import pytest

from leanresnet.jobs.progress import Progress
from leanresnet.training.results import Outputs, save_results
from leanresnet.training.validation import Metrics


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as its only number."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def row(epoch: int) -> Metrics:
    values = {"lr": 0.1, "train/loss": 1 / epoch, "train/accuracy": epoch / 100}
    return values | {"val/loss": 2 / epoch, "val/accuracy": epoch / 50}


def epoch_of(number: int) -> Metrics:
    """What the loop reports."""
    return row(number) | {"val/best_accuracy": number / 50, "images_per_second": 1234.5, "train_seconds": 1.0}


def train(epochs: int, outputs: Outputs, clock: list[float], seconds: float, history: list[Metrics]) -> Progress:
    progress = Progress(epochs, history, outputs)
    for epoch in range(len(history) + 1, epochs + 1):
        clock[0] += seconds
        progress.show(epoch_of(epoch), epoch)
    return progress


def test_without_a_terminal_there_is_a_line_at_once_and_then_one_in_ten_seconds(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    outputs = Outputs(tmp_path / "models", tmp_path / "results")
    train(10, outputs, clock, 4.0, []).finish(9, "http://host/#/experiments/1/runs/2")
    *lines, summary, run = capsys.readouterr().err.splitlines()
    assert [text.split()[1] for text in lines] == ["1/10", "4/10", "7/10", "10/10"]
    measured = "train loss 0.250 accuracy 4.00%  val loss 0.500 accuracy 8.00%"
    assert lines[1] == f"epoch  4/10  {measured}  lr 0.1  1,234 images/s  00:24 left"
    assert summary == f"best epoch 9 of 10, validation 18.00%, after 00:40; the model is in {tmp_path / 'models'}"
    assert run == "run: http://host/#/experiments/1/runs/2"


@pytest.mark.parametrize(
    ("uri", "served"), [("sqlite:////runs.db", " (served by `leanresnet ui`)"), ("http://127.0.0.1:5000", "")]
)
def test_an_address_that_no_server_has_names_the_command_that_serves_it(
    uri: str,
    served: str,
    tmp_path: Path,
    clock: list[float],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server of MLflow may be on this machine too."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    train(1, Outputs(tmp_path, tmp_path), clock, 1.0, []).finish(1, "http://127.0.0.1:5000/#/experiments/1/runs/2")
    run = capsys.readouterr().err.splitlines()[-1]
    assert run == f"run: http://127.0.0.1:5000/#/experiments/1/runs/2{served}"


def test_on_a_terminal_each_epoch_keeps_its_line(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(5, Outputs(tmp_path, tmp_path), clock, 1.0, [row(1), row(2)])
    lines = capsys.readouterr().err.splitlines()
    assert [(text.split()[1], text.split()[-2]) for text in lines] == [
        ("3/5", "00:02"),
        ("4/5", "00:01"),
        ("5/5", "00:00"),
    ]


def test_the_history_grows_in_the_form_that_it_has_at_the_end(tmp_path: Path, clock: list[float]) -> None:
    live, whole = Outputs(tmp_path, tmp_path / "live"), Outputs(tmp_path, tmp_path / "whole")
    progress = Progress(3, [row(1)], live)
    for epoch in (2, 3):
        progress.show(epoch_of(epoch), epoch)
        assert len(live.history.read_text().splitlines()) == 1 + epoch
    save_results([row(epoch) for epoch in (1, 2, 3)], 3, whole)
    assert live.history.read_bytes() == whole.history.read_bytes()
    assert [path.name for path in live.results.iterdir()] == ["history.csv"]


def test_the_history_of_an_earlier_model_stays_until_there_is_another(tmp_path: Path, clock: list[float]) -> None:
    outputs = Outputs(tmp_path, tmp_path)
    save_results([row(1)], 1, outputs)
    before = outputs.history.read_bytes()
    train(3, outputs, clock, 1.0, [])
    assert outputs.history.read_bytes() == before


def test_a_history_that_cannot_be_written_stops_no_training(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").touch()
    train(2, Outputs(tmp_path, tmp_path / "results"), clock, 1.0, [])
    assert "warning: the history is not written, training continues: " in capsys.readouterr().err
