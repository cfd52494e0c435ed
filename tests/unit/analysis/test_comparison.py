"""Runs of a question side by side, from a real MLflow database."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from databases import place_database
from matplotlib.colors import to_hex

from leanresnet.analysis import runs as registry
from leanresnet.analysis.charts import COSTS, confusion_difference, costs_differ, curves, front, overview, trade_off
from leanresnet.analysis.comparison import compare, differing, select
from leanresnet.analysis.runs import RunRecord, find_experiments, find_run, find_run_of_weights
from leanresnet.errors import DataError
from leanresnet.tracking import run as reporting
from leanresnet.tracking.events import EXPERIMENT_TAG, WEIGHTS_TAG


def recorded(experiment: str, accuracy: float, parameters: float = 1000, **params: str) -> RunRecord:
    metrics = {
        "model/parameters": parameters,
        "model/macs": 2e6,
        "val/best_accuracy": accuracy + 0.002,
        "val/evaluated_accuracy": accuracy,
        "test/accuracy": accuracy - 0.01,
        "speed/latency_ms": 1.25,
        "train_seconds": 90.0,
    }
    tags = {EXPERIMENT_TAG: experiment, "model": "baseline", "dataset": "cifar10"}
    return RunRecord(
        experiment,
        "",
        "FINISHED",
        tags,
        {"epochs": "3", "max_parameters": "5", **params},
        metrics,
        lambda: [0.1, accuracy],
    )


def track(
    monkeypatch: pytest.MonkeyPatch, experiment: str, model: str, accuracies: list[float], fail: bool = False
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", experiment)
    with reporting.start_run(experiment, {"lr": accuracies[-1], "budget": 7}, {"model": model}) as run:
        for epoch, accuracy in enumerate(accuracies, start=1):
            run.log_metrics({"val/accuracy": accuracy, "val/best_accuracy": max(accuracies[:epoch])}, epoch)
        run.log_metrics({"model/parameters": 1000, "model/macs": 2e6}, 1)
        if fail:
            raise RuntimeError


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    place_database(tmp_path)
    return tmp_path


def test_of_runs_with_the_same_weights_an_evaluated_one_is_found(workspace: Path) -> None:
    """The newest of them."""
    for accuracy in (0.4, 0.5, None):
        with reporting.start_run("name", {}, {"model": "baseline"}) as run:
            run.set_tags({WEIGHTS_TAG: 64 * "a"})
            if accuracy is not None:
                run.log_metrics({"val/evaluated_accuracy": accuracy}, 1)
    found = find_run_of_weights(64 * "a")
    assert found is not None
    assert found.metrics == {"val/evaluated_accuracy": 0.5}
    assert find_run_of_weights(64 * "b") is None


def test_of_models_with_the_same_weights_each_has_its_run(workspace: Path) -> None:
    for model in ("baseline", "teacher"):
        with reporting.start_run("name", {}, {"model": model}) as run:
            run.set_tags({WEIGHTS_TAG: 64 * "a"})
    found = [find_run_of_weights(64 * "a", model) for model in ("baseline", "teacher", "student", None)]
    assert [each and each.model for each in found] == ["baseline", "teacher", None, "teacher"]


def test_a_quote_in_a_name_is_no_mistake_of_the_server(workspace: Path) -> None:
    with pytest.raises(
        DataError, match=r"^experiment = it's: no finished run in the experiment leanresnet of .*, expected"
    ):
        select([], ["it's"], {})
    assert find_run("x'y") is None


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
    found = {(run.experiment, run.model): run for run in find_experiments("optimizers", {})}
    assert set(found) == {("optimizers-sgd", "baseline"), ("optimizers-sgd", "teacher"), ("optimizers", "baseline")}
    newest = found["optimizers-sgd", "baseline"]
    assert newest.validation() == [0.3, 0.5, 0.4]
    assert newest.metrics["val/best_accuracy"] == 0.5
    assert newest.params == {"lr": "0.4", "budget": "7"}


def test_experiments_of_the_same_name_in_another_workspace_are_not_this_ones(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "reference")
    for epochs in (15, 300):
        with reporting.start_run("name", {"epochs": epochs}, {"model": "baseline"}) as run:
            run.set_tags({"dvc.weights_md5": f"weights of {epochs}"})
    (ours,) = find_experiments("reference", {"reference": ["weights of 15", "of another model"]})
    assert ours.params["epochs"] == "15"
    assert find_experiments("reference", {"reference": []}) == []


def test_a_model_that_existed_before_the_experiment_is_found_by_its_weights(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here that of a workspace, of which DVC took the model for one experiment. It was trained twice."""

    def trained(experiment: str, lr: float, accuracy: float | None = None) -> None:
        monkeypatch.setenv("DVC_EXP_NAME", experiment)
        with reporting.start_run("name", {"lr": lr}, {"model": "baseline"}) as run:
            run.set_tags({"dvc.weights_md5": f"weights of {lr}"})
            run.log_metrics({"val/best_accuracy": 0.5, "model/parameters": 1, "model/macs": 1}, 1)
            if accuracy is not None:
                run.log_metrics({"val/evaluated_accuracy": accuracy}, 1)

    trained("", 0.1, accuracy=0.6)
    trained("", 0.1)
    trained("sweep-b", 0.2)
    monkeypatch.delenv("DVC_EXP_NAME")
    here = {
        "sweep-a": ["weights of 0.1"],
        "sweep-b": ["weights of 0.2"],
        "sweep-c": ["weights of 0.3"],
        "sweeps": ["weights of 0.1"],
    }
    found = {run.label: run for run in select([], ["sweep"], here)}
    assert {name: run.params["lr"] for name, run in found.items()} == {"sweep-a": "0.1", "sweep-b": "0.2"}
    assert found["sweep-a"].metrics["val/evaluated_accuracy"] == 0.6


def test_experiments_that_share_a_model_share_its_row(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "sweep-b")
    with reporting.start_run("name", {"seed": 0}, {"model": "baseline"}) as run:
        run.set_tags({"dvc.weights_md5": "shared"})
        run.log_metrics({"val/best_accuracy": 0.5, "model/parameters": 1, "model/macs": 1}, 1)
    monkeypatch.delenv("DVC_EXP_NAME")
    here = {name: ["shared"] for name in ("reference", "sweep-a", "sweep-b")}
    (shared,) = select([], ["sweep", "reference"], here)
    assert shared.label == "sweep-b, sweep-a, reference"
    assert shared.experiments == ["sweep-b", "sweep-a", "reference"]
    for name in (*shared.experiments, shared.run_id):
        assert compare([shared], against=name).rows[0][0] == shared.label
    # A run that is named itself is the same run.
    (shared,) = select([shared.run_id], ["reference"], here)
    assert shared.experiments == ["sweep-b", "reference"]


def test_a_comparison_is_written_as_a_table_and_a_picture(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    track(monkeypatch, "depth-1", "baseline", [0.5])
    track(monkeypatch, "reference", "baseline", [0.7])
    found = compare(select([], ["depth", "reference"], {}))
    found.write(workspace / "out" / "depth")
    text = found.markdown()
    assert (workspace / "out/depth.md").read_text() == text + "\n"
    assert (workspace / "out/depth.png").read_bytes().startswith(b"\x89PNG")
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == ["| reference", "| depth-1"]


def foreign(tags: dict[str, str], metrics: dict[str, float], **params: str) -> RunRecord:
    """A finished run of somebody else in the same experiment."""
    return RunRecord(str(len(tags) + len(metrics)), "theirs", "FINISHED", tags, params, metrics, list)


def test_runs_of_somebody_else_are_left_out_by_name_and_the_others_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"model/parameters": 1.0, "model/macs": 1.0}
    runs = [
        recorded("ours", 0.5),
        foreign({}, {}),
        foreign({}, {"val/best_accuracy": 0.9, **sizes}),
        foreign({"model": "baseline"}, {"val/best_accuracy": float("nan"), **sizes}),
        foreign({"model": "theirs", "other": ""}, {"val/best_accuracy": 0.4, **sizes}, seed="first"),
    ]
    monkeypatch.setattr(registry, "find_finished", lambda: runs)
    found = compare(select([], [], {}))
    assert [row[:2] for row in found.rows] == [["ours", "baseline"], ["theirs", "theirs"]]
    found.write(tmp_path / "all")
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"warning: run {n} theirs: left out, ") for n, line in zip("034", lines, strict=True))
    assert [line.partition(" and lacks ")[2] for line in lines] == [
        "model, val/best_accuracy, model/parameters, model/macs",
        "model",
        "val/best_accuracy",
    ]


def test_where_no_run_can_be_compared_it_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_finished", lambda: [foreign({}, {})])
    with pytest.raises(DataError, match=r"^no run of 1 can be compared, expected: trainings of leanresnet that"):
        select([], [], {})


def test_a_question_without_runs_is_a_mistake(workspace: Path) -> None:
    with pytest.raises(
        DataError, match=r"^experiment = nothing: no finished run in the experiment leanresnet of .*, expected: "
    ):
        select([], ["nothing"], {})


def test_only_params_that_differ_are_shown_and_none_that_follow_from_others() -> None:
    runs = [
        recorded("a", 0.5, lr="1", mix="no", max_parameters="1"),
        recorded("b", 0.6, lr="2", mix="no", max_parameters="2"),
    ]
    assert differing(runs) == ["lr"]
    assert differing([runs[0], recorded("c", 0.6, lr="1")]) == ["mix"]
    pools = [recorded("a", 0.5, **{"model.layers": "3", "model.pool": pool}) for pool in ("8", "4")]
    assert differing(pools) == ["model.pool"]


def test_a_row_has_the_figures_of_its_run() -> None:
    found = compare([recorded("a", 0.75, 1234567, lr="1"), recorded("b", 0.5, lr="2")])
    assert dict(zip(found.header, found.rows[0], strict=True)) == {
        "run": "a",
        "model": "baseline",
        "lr": "1",
        "parameters": "1,234,567",
        "million MACs": "2.0",
        "latency, ms": "1.25",
        "validation": "75.00%",
        "test": "74.00%",
        "to the study": "-19.75",
        "minutes": "1.5",
    }
    lines = found.markdown().splitlines()
    assert lines[2] == "| a | baseline | 75.00% | 74.00% | -19.75 | 1,234,567 | 2.0 | 1.25 | 1.5 | 1 |"
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(("seconds", "said"), [(3.0, "0.05"), (59.9, "1.00"), (60.0, "1.0"), (4665.0, "77.8")])
def test_a_short_training_has_minutes_too(seconds: float, said: str) -> None:
    run = recorded("a", 0.75)
    found = compare([replace(run, metrics=run.metrics | {"train_seconds": seconds})])
    assert dict(zip(found.header, found.rows[0], strict=True))["minutes"] == said


def test_runs_that_differ_in_their_seed_alone_are_one_line_with_mean_and_deviation() -> None:
    runs = [
        recorded("one-b", 0.52, seed="1", lr="1"),
        recorded("one-a", 0.50, seed="0", lr="1"),
        recorded("two", 0.54, seed="0", lr="2"),
        recorded("one-c", 0.57, seed="2", lr="1"),
    ]
    lines = compare(runs).markdown().splitlines()
    assert [line.strip("| ").split(" | ") for line in lines[2:]] == [
        ["two", "baseline", "1", "54.00%", "53.00%", "-40.75", "1,000", "2.0", "1.25", "1.5", "0", "2"],
        # Of 50, 52 and 57: the mean 53, deviations -3, -1, 4, and the root of 26 / 2.
        [
            "one-a",
            "baseline",
            "3",
            "53.00% ± 3.61",
            "52.00% ± 3.61",
            "-41.75",
            "1,000",
            "2.0",
            "1.25",
            "1.5",
            "0, 1, 2",
            "1",
        ],
    ]


def test_rows_are_compared_with_another_seed_by_seed() -> None:
    def row(name: str, *accuracies: float) -> list[RunRecord]:
        return [recorded(f"{name}-{n}", each, seed=str(n), lr=name) for n, each in enumerate(accuracies)]

    # Of 1, 2 and 3 points: the mean 2, and 4.303 * 1 / sqrt(3), the 0.975 quantile of t for 2 degrees of freedom.
    runs = [*row("a", 0.50, 0.60, 0.55), *row("b", 0.51, 0.62, 0.58), *row("c", 0.40), *row("d", 0.7, 0.8)]
    del runs[-1].metrics["test/accuracy"]
    table = compare([*runs, recorded("e", 0.3, seed="7", lr="e")], against="a-2")
    place = table.header.index("paired difference")
    assert [(row[0], row[place]) for row in table.rows] == [
        ("d-0", "+20.00"),
        ("b-0", "+2.00 (-0.48 to +4.48)"),
        ("a-0", ""),
        ("c-0", "-10.00"),
        ("e", ""),
    ]
    assert [len(table.header)] == list({len(row) for row in table.rows})
    assert "minus that of a-0, in points" in table.notes[1]
    with pytest.raises(DataError, match=r"^against = 'x': no such run, expected: one of d-0, b-0, a-0, c-0, e$"):
        compare([*runs, recorded("e", 0.3, seed="7", lr="e")], against="x")


def test_a_name_of_several_rows_is_refused_and_an_id_says_which() -> None:
    """Outside of an experiment, runs that differ in another param than the model and the epochs have the same name."""
    runs = [replace(recorded("same", 0.1 * n, lr=str(n)), run_id=f"id{n}") for n in (1, 2)]
    expected = r"^against = 'same': in 2 rows, expected: the id of a run, one of id2 \(baseline\), id1 \(baseline\)$"
    with pytest.raises(DataError, match=expected):
        compare(runs, against="same")
    table = compare(runs, against="id1")
    place = table.header.index("paired difference")
    assert [(row[table.header.index("lr")], row[place]) for row in table.rows] == [("2", "+10.00"), ("1", "")]


def test_a_run_that_is_left_out_decides_nothing() -> None:
    """A seed ran twice; the first time, the model was not evaluated."""
    first, second = (replace(recorded("a", each, seed="0"), run_id=str(each)) for each in (0.7, 0.8))
    del first.metrics["val/evaluated_accuracy"]
    table = compare([first, second, recorded("b", 0.6, seed="0", lr="1")])
    assert table.header[2] == "validation"
    assert [row[2] for row in table.rows] == ["80.00%", "60.00%"]


def test_the_files_have_the_whole_name(tmp_path: Path) -> None:
    for name in ("lr-0.1", "lr-0.2.md"):
        compare([recorded("a", 0.5)]).write(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"lr-0.1.md", "lr-0.1.png", "lr-0.2.md", "lr-0.2.png"}


def test_a_table_over_seeds_says_what_its_deviation_leaves_out(tmp_path: Path) -> None:
    runs = [recorded("a", 0.5, seed="0"), recorded("b", 0.6, seed="1")]
    compare(runs).write(tmp_path / "seeds")
    compare(runs, by_seed=False).write(tmp_path / "runs")
    said = "sampling error of the test split, 0.24 points for 94 % of 10,000 images."
    assert said in (tmp_path / "seeds.md").read_text().splitlines()[-1]
    assert said not in (tmp_path / "runs.md").read_text()
    assert "n" not in compare(runs, by_seed=False).header


def test_other_data_or_another_teacher_is_another_line_that_says_so() -> None:
    runs = [recorded("a", 0.5, seed="0"), recorded("b", 0.6, seed="1"), recorded("c", 0.7, seed="0")]
    for each, md5 in zip(runs, ("0123456789", "0123456789", "abcdef0123"), strict=True):
        each.tags["dvc.train_md5"] = md5
    runs[0].tags["teacher.sha256"] = runs[1].tags["teacher.sha256"] = "taught"
    found = compare(runs)
    assert found.header[-2:] == ["seed", "training data"]
    assert [[row[0], row[3], *row[-2:]] for row in found.rows] == [
        ["c", "70.00%", "0", "abcdef01"],
        ["a", "55.00% ± 7.07", "0, 1", "01234567"],
    ]


def test_two_ensembles_are_two_teachers() -> None:
    """Whom MLflow knows no run of."""
    runs = [recorded(name, 0.5, seed=seed) for name, seed in (("a", "0"), ("b", "0"), ("c", "1"))]
    for each, sha256 in zip(runs, ("0123456789", "abcdef0123", "abcdef0123"), strict=True):
        each.tags["teacher.sha256"] = sha256
    assert sorted((row[0], row[-1]) for row in compare(runs).rows) == [("a", "01234567"), ("b", "abcdef01")]


def test_what_a_picture_names_is_inside_it() -> None:
    runs = [recorded("a-rather-long-name" * 3, 0.5 + cost / 10, cost * 1e6) for cost in (1, 2, 3)]
    figure = trade_off([[run] for run in runs], "parameters")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert "2M" in [label.get_text() for label in axes.get_xticklabels()]
    assert len(axes.texts) == 3
    for name in axes.texts:
        box = name.get_window_extent()
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1


@pytest.mark.parametrize("count", [10, 11, 50])
def test_the_names_of_many_runs_are_in_the_picture_and_leave_room_for_the_curves(count: int) -> None:
    groups = [[recorded(f"run {number} with a long name", 0.5, lr=str(number))] for number in range(count)]
    for figure in (curves(groups), overview(groups)):
        figure.draw_without_rendering()
        axes = figure.axes[0]
        legend = axes.get_legend() or figure.legends[0]
        assert len(legend.get_texts()) == count
        box = legend.get_window_extent()
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert min(axes.bbox.width, axes.bbox.height) > 200


def test_no_name_of_a_point_covers_another_name_or_point() -> None:
    near = [recorded(f"augmentation-{n}", 0.6 + n % 3 / 100, 1e6 + n) for n in range(12)]
    figure = trade_off([[run] for run in near], "parameters")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [run.experiment for run in near]
    boxes = [text.get_window_extent() for text in axes.texts]
    points = [axes.transData.transform(points.get_offsets()[0]) for points in axes.collections]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_the_first_epochs_do_not_press_the_other_ones_together() -> None:
    """A fifth of the epochs of each run; a value that is no number changes nothing."""
    long = replace(recorded("long", 0.5), validation=lambda: [0.1, 0.3, *np.linspace(0.9, 0.95, 7), np.nan])
    short = replace(recorded("short", 0.5), validation=lambda: [0.85])
    (axes,) = curves([[long], [short]]).axes
    assert axes.get_ylim() == pytest.approx((84.5, 95.5))


def test_a_group_has_one_colour_in_all_charts() -> None:
    found = overview([[recorded(str(n), 0.5 + n / 100, 1e5 * n)] for n in range(1, 13)])
    curves, points = found.axes
    drawn = [to_hex(line.get_color()) for line in curves.lines]
    assert drawn == [to_hex(point.get_facecolor()[0]) for point in points.collections]
    shapes = {(to_hex(p.get_facecolor()[0]), tuple(map(tuple, p.get_paths()[0].vertices))) for p in points.collections}
    assert len(shapes) == 12


def test_a_terminal_shows_aligned_columns() -> None:
    lines = compare([recorded("a", 0.5, lr="1"), recorded("longer", 0.6, lr="\x1b[31m")]).text(200).splitlines()
    names, *rows = lines[next(place for place, line in enumerate(lines) if line.startswith("run")) :]
    assert names.split()[:3] == ["run", "model", "validation"]
    assert [line.index("baseline") for line in rows] == [names.index("model")] * 2
    assert [line.index("%") for line in rows] == [names.index("validation") + len("validation") - 1] * 2
    assert "\x1b" not in "".join(lines)


def test_the_study_is_compared_with_on_its_own_data_alone() -> None:
    (digits,) = [recorded("a", 0.5)]
    assert "to the study" in compare([digits]).header
    digits.tags["dataset"] = "digits"
    table = compare([digits])
    assert "to the study" not in table.header
    assert len(table.header) == len(table.rows[0])


def test_seeds_are_one_point_at_their_mean_so_that_the_luckiest_makes_no_front() -> None:
    lucky = [recorded("a", accuracy, 1e6, seed=str(seed)) for seed, accuracy in enumerate((0.5, 0.9))]
    others = [recorded("b", 0.8, 2e6), recorded("c", 0.75, 3e6)]
    (axes,) = trade_off([lucky, *([other] for other in others)], "parameters").axes
    points = [tuple(points.get_offsets()[0]) for points in axes.collections]
    assert points == [(1e6, 70), (2e6, 80), (3e6, 75)]
    assert [text.get_text() for text in axes.texts] == ["a", "b", "c"]
    assert axes.lines[0].get_xydata().tolist() == [[1e6, 70], [2e6, 80]]


def test_of_a_seed_that_ran_twice_the_evaluated_run_counts_then_the_newest(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the order in which they are named."""
    older, newer, last = (replace(recorded(str(each), each, seed="0"), started=each) for each in (1, 2, 3))
    del last.metrics["val/evaluated_accuracy"]
    for runs in ([older, newer, last], [last, newer, older]):
        (row,) = compare(runs).rows
        assert row[0] == "2"
        left = "2 of 3 runs are left out, because others have the same params and the same seed"
        assert capsys.readouterr().err == f"warning: {left}; `--group-by none` shows them\n"


def test_rows_differ_only_in_what_a_column_shows() -> None:
    """The budget changes no model. A training that was extended is no repeat of one from the start."""
    budgets = [recorded(f"budget of {budget}", 0.5, seed=budget, max_parameters=budget) for budget in "12"]
    (row,) = compare(budgets).rows
    assert row[0] == "budget of 1"
    found = compare([recorded("whole", 0.5), recorded("extended", 0.6, extended_from="2")])
    assert [(row[0], row[-1]) for row in found.rows] == [("extended", "2"), ("whole", "")]
    assert found.header[-1] == "extended_from"


def test_a_model_that_was_trained_again_keeps_its_evaluation() -> None:
    """DVC evaluates it again only if its bytes have changed."""
    first, again = recorded("a", 0.5, lr="1"), recorded("a", 0.5, lr="1")
    for run in (first, again):
        run.tags[WEIGHTS_TAG] = "0" * 64
    for name in ("val/evaluated_accuracy", "test/accuracy"):
        del again.metrics[name]
    table = compare([first, again, recorded("b", 0.4, lr="2")])
    assert [row[:4] for row in table.rows] == [
        ["a", "baseline", "50.00%", "49.00%"],
        ["b", "baseline", "40.00%", "39.00%"],
    ]
    assert table.header[2] == "validation"
    again.tags["model"] = "teacher"
    assert len(compare([first, again]).rows) == 2
    again.tags.update({"model": "baseline", WEIGHTS_TAG: "1" * 64})
    assert [row[:4] for row in compare([first, again]).rows] == [["a", "baseline", "50.00%", "49.00%"]]


def test_validation_is_one_measure_in_a_table_and_a_chart_and_is_named() -> None:
    runs = [recorded(name, accuracy, lr=name) for name, accuracy in (("a", 0.5), ("b", 0.6), ("c", 0.7))]
    for header, label, best, found in (
        ("validation", "validation accuracy, %", "70.00%", 70),
        ("validation in training", "best validation accuracy in training, %", "70.20%", 70.2),
    ):
        table = compare(runs)
        assert (table.header[2], table.rows[0][2]) == (header, best)
        assert table.markdown().splitlines()[1].startswith("| --- | --- | ---: |")
        (axes,) = trade_off(table.groups, "parameters").axes
        assert (axes.get_ylabel(), axes.collections[0].get_offsets()[0][1]) == (label, pytest.approx(found))
        # The others were evaluated.
        runs[0].metrics.pop("val/evaluated_accuracy", None)


def test_the_best_stand_first_and_seeds_apart_when_asked() -> None:
    runs = [recorded("a", 0.5, seed="0"), recorded("b", 0.7, seed="1"), recorded("c", 0.55, lr="1")]
    assert [row[0] for row in compare(runs).rows] == ["a", "c"]
    assert [row[0] for row in compare(runs, by_seed=False).rows] == ["b", "c", "a"]


def test_a_group_in_which_a_run_was_not_evaluated_has_no_test_accuracy() -> None:
    runs = [recorded("a", 0.5, seed="0"), recorded("b", 0.6, seed="1")]
    del runs[1].metrics["test/accuracy"]
    table = compare(runs)
    assert table.rows[0][2:5] == ["2", "55.00% ± 7.07", ""]


def test_the_front_is_what_nothing_cheaper_beats() -> None:
    points = [(3, 0.9, "c"), (1, 0.5, "a"), (2, 0.4, "beaten"), (3, 0.8, "also"), (4, 0.9, "equal"), (1, 0.3, "worse")]
    assert front(points) == [(1, 0.5, "a"), (3, 0.9, "c")]


def test_a_front_of_one_run_is_neither_drawn_nor_in_a_legend() -> None:
    (axes,) = trade_off([[recorded("a", 0.9, 1e6)], [recorded("b", 0.8, 2e6)]], "parameters").axes
    assert (list(axes.lines), axes.get_legend()) == ([], None)
    (axes,) = trade_off([[recorded("a", 0.8, 1e6)], [recorded("b", 0.9, 2e6)]], "parameters").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["front"]


def test_differences_of_one_image_have_no_ticks_for_half_an_image() -> None:
    _, bar = confusion_difference(np.array([[1, -1], [0, 0]]), ["a", "b"]).axes
    assert bar.get_yticks().tolist() == [-1, 0, 1]


def test_no_two_of_many_curves_look_alike() -> None:
    lines = overview([[recorded(str(number), 0.5)] for number in range(25)]).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 25


@pytest.mark.parametrize(("parameters", "latency", "drawn"), [(1000, 2.5, []), (1020, 1.25, ["parameters"])])
def test_latency_is_drawn_where_a_size_differs_too(parameters: int, latency: float, drawn: list[str]) -> None:
    other = recorded("b", 0.6, parameters)
    other.metrics["speed/latency_ms"] = latency
    groups = [[recorded("a", 0.5)], [other]]
    assert [cost for cost in COSTS if costs_differ(groups, cost)] == drawn
    other.metrics.update({"model/parameters": 1020, "speed/latency_ms": 2.5})
    assert [cost for cost in COSTS if costs_differ(groups, cost)] == ["parameters", "latency, ms"]


def test_sizes_are_drawn_where_they_differ() -> None:
    alike = [recorded("a", 0.5, 1000), recorded("b", 0.6, 1009), recorded("c", 0.7, 1010)]
    assert [axes.get_xlabel() for axes in overview([[run] for run in alike]).axes] == ["epoch"]
    apart = [
        recorded(name, accuracy, size) for name, accuracy, size in (("a", 0.5, 10), ("b", 0.6, 20), ("c", 0.7, 30))
    ]
    drawn = overview([[run] for run in apart]).axes
    assert [axes.get_xlabel() for axes in drawn] == ["epoch", "parameters"]
    assert [line.get_label() for line in drawn[0].lines] == ["a (baseline)", "b (baseline)", "c (baseline)"]
