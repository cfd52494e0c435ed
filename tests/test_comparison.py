"""Runs of a question side by side, from a real MLflow database."""

from pathlib import Path

import pytest

from leanresnet import reporting
from leanresnet.comparison import compare_experiments, differing, front, picture, table
from leanresnet.errors import DataError, StorageError
from leanresnet.tracking import Recorded, find_experiments


def recorded(experiment: str, accuracy: float, parameters: float = 1000, **params: str) -> Recorded:
    metrics = {
        "model/parameters": parameters,
        "model/macs": 2e6,
        "val/best_accuracy": accuracy,
        "test/accuracy": accuracy - 0.01,
        "train_seconds": 90.0,
    }
    return Recorded(experiment, "baseline", {"epochs": "3", "budget": "5", **params}, metrics, [0.1, accuracy])


def track(
    monkeypatch: pytest.MonkeyPatch, experiment: str, model: str, accuracies: list[float], fail: bool = False
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", experiment)
    with reporting.start_run(experiment, {"lr": accuracies[-1]}, {"model": model}) as run:
        for epoch, accuracy in enumerate(accuracies, start=1):
            run.log_metrics({"val/accuracy": accuracy, "val/best_accuracy": max(accuracies[:epoch])}, epoch)
        run.log_metrics({"model/parameters": 1000, "model/macs": 2e6}, 1)
        if fail:
            raise RuntimeError


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_a_question_finds_its_finished_runs_the_newest_of_each_model(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track(monkeypatch, "optimizers-sgd", "baseline", [0.1, 0.2])
    track(monkeypatch, "optimizers-sgd", "baseline", [0.3, 0.5, 0.4])
    track(monkeypatch, "optimizers-sgd", "teacher", [0.6])
    track(monkeypatch, "optimizers", "baseline", [0.7])
    track(monkeypatch, "optimizers2-sgd", "baseline", [0.8])
    with pytest.raises(RuntimeError):
        track(monkeypatch, "optimizers-adam", "baseline", [0.9], fail=True)
    found = {(run.experiment, run.model): run for run in find_experiments("optimizers")}
    assert set(found) == {("optimizers-sgd", "baseline"), ("optimizers-sgd", "teacher"), ("optimizers", "baseline")}
    newest = found["optimizers-sgd", "baseline"]
    assert newest.validation == [0.3, 0.5, 0.4]
    assert newest.metrics["val/best_accuracy"] == 0.5
    assert newest.params == {"lr": "0.4"}


def test_a_comparison_is_written_as_a_table_and_a_picture(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    track(monkeypatch, "depth-1", "baseline", [0.5])
    track(monkeypatch, "reference", "baseline", [0.7])
    text = compare_experiments(["depth", "reference"], workspace / "out" / "depth")
    assert (workspace / "out/depth.md").read_text() == text + "\n"
    assert (workspace / "out/depth.png").read_bytes().startswith(b"\x89PNG")
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == ["| reference", "| depth-1"]


def test_a_question_without_runs_is_a_mistake(workspace: Path) -> None:
    with pytest.raises(DataError, match=r"^experiment = nothing: no finished run, accepted: "):
        compare_experiments(["nothing"], None)


def test_a_name_that_mlflow_cannot_search_is_a_mistake(workspace: Path) -> None:
    with pytest.raises(StorageError, match=r"MLflow does not answer for"):
        compare_experiments(["it's"], None)


def test_only_params_that_differ_are_shown_and_none_that_follow_from_others() -> None:
    runs = [recorded("a", 0.5, lr="1", mix="no", budget="1"), recorded("b", 0.6, lr="2", mix="no", budget="2")]
    assert differing(runs) == ["lr"]
    assert differing([runs[0], recorded("c", 0.6, lr="1")]) == ["mix"]


def test_a_row_has_the_figures_of_its_run() -> None:
    lines = table([recorded("a", 0.75, 1234567, lr="1"), recorded("b", 0.5, lr="2")]).splitlines()
    assert lines[0] == "| experiment | model | lr | parameters | million MACs | validation | test | minutes |"
    assert lines[2] == "| a | baseline | 1 | 1,234,567 | 2.0 | 75.00% | 74.00% | 1.5 |"
    assert len({line.count("|") for line in lines}) == 1


def test_runs_that_differ_in_their_seed_alone_are_one_line_with_mean_and_deviation() -> None:
    runs = [
        recorded("one-b", 0.52, seed="1", lr="1"),
        recorded("one-a", 0.50, seed="0", lr="1"),
        recorded("two", 0.54, seed="0", lr="2"),
        recorded("one-c", 0.57, seed="2", lr="1"),
    ]
    lines = table(runs).splitlines()
    assert [line.split(" | ")[:4] for line in lines[2:]] == [
        ["| two", "baseline", "0", "2"],
        ["| one-a", "baseline", "0, 1, 2", "1"],
    ]
    # Of 50, 52 and 57: the mean 53, deviations -3, -1, 4, and the root of 26 / 2.
    assert lines[3].split(" | ")[6:8] == ["53.00% ± 3.61", "52.00% ± 3.61"]


def test_a_group_in_which_a_run_was_not_evaluated_has_no_test_accuracy() -> None:
    runs = [recorded("a", 0.5, seed="0"), recorded("b", 0.6, seed="1")]
    del runs[1].metrics["test/accuracy"]
    assert table(runs).splitlines()[2].split(" | ")[-3:] == ["55.00% ± 7.07", "", "1.5 |"]


def test_the_front_is_what_nothing_cheaper_beats() -> None:
    points = [(3, 0.9, "c"), (1, 0.5, "a"), (2, 0.4, "beaten"), (3, 0.8, "also"), (4, 0.9, "equal"), (1, 0.3, "worse")]
    assert front(points) == [(1, 0.5, "a"), (3, 0.9, "c")]


def test_sizes_are_drawn_where_they_differ() -> None:
    alike = [recorded("a", 0.5), recorded("b", 0.6), recorded("c", 0.7)]
    assert [axes.get_xlabel() for axes in picture(alike).axes] == ["epoch"]
    apart = [
        recorded(name, accuracy, size) for name, accuracy, size in (("a", 0.5, 10), ("b", 0.6, 20), ("c", 0.7, 30))
    ]
    drawn = picture(apart).axes
    assert [axes.get_xlabel() for axes in drawn] == ["epoch", "parameters"]
    assert [line.get_label() for line in drawn[0].lines] == ["a (baseline)", "b (baseline)", "c (baseline)"]
