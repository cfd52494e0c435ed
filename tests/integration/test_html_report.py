"""The comparison of a workspace's models as a page: whole in itself, and true to its sources."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import Checkout
from databases import client_of
from test_tracking import runs_by_model

from leanresnet.analysis.charts import confusion_difference
from leanresnet.analysis.comparison import compare, select
from leanresnet.analysis.disagreement import Disagreement, disagreement
from leanresnet.analysis.html_report import INK, write_page
from leanresnet.analysis.runs import RunRecord
from leanresnet.data.splits import load_split
from leanresnet.errors import DataError


@pytest.fixture
def workspace(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(checkout.folder))
    return checkout.folder


def answers(folder: Path, model: str) -> list[tuple[str, str]]:
    with (folder / "results" / model / "confusion.csv").open(newline="") as file:
        return [(row["true"], row["predicted"]) for row in csv.DictReader(file)]


def made_up(truth: str, first: str, second: str) -> Disagreement:
    run = RunRecord("", "", "", {}, {}, {}, list)
    return Disagreement(run, run, list(truth), (list(first), list(second)))


def test_the_command_writes_one_file_that_needs_no_other_and_logs_it(checkout: Checkout, tmp_path: Path) -> None:
    folder = checkout.folder
    runs = runs_by_model(folder)
    ids = [runs[model].info.run_id for model in ("baseline", "teacher")]
    shown = checkout.shell("leanresnet", "compare", *ids, "--html", str(tmp_path / "page.html")).stdout
    page = (tmp_path / "page.html").read_text()
    addresses = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "<script" not in page
    assert "<h1>2 runs compared</h1>" in page
    assert INK not in page
    # The curves, accuracy over three costs, and the differences in confusion.
    assert page.count("<svg") == 5
    for cell in shown.splitlines()[2].strip("| ").split(" | "):
        assert f">{cell.strip()}</td>" in page
    best = max(ids, key=lambda run_id: client_of(folder).get_run(run_id).data.metrics["val/evaluated_accuracy"])
    assert [file.path for file in client_of(folder).list_artifacts(best, "comparisons")] == ["comparisons/page.html"]
    one, other = answers(folder, "baseline"), answers(folder, "teacher")
    differ = sum(a != b for a, b in zip(one, other, strict=True))
    assert f"predictions differ on {differ} of {len(one)} images" in page
    assert page.count('<img src="data:image/png') == min(24, differ)


def test_all_finished_runs_are_compared_where_none_is_named(workspace: Path) -> None:
    assert {run.run_id for run in select([], [], {})} >= {run.info.run_id for run in runs_by_model(workspace).values()}


def test_a_model_is_named_by_its_place(workspace: Path) -> None:
    (run,) = select([str(workspace / "models/student")], [], {})
    assert run.model == "student"


def test_without_the_test_split_the_page_says_so(workspace: Path, tmp_path: Path) -> None:
    runs = select([str(workspace / "models" / model) for model in ("baseline", "teacher")], [], {})
    differ = disagreement(*runs)
    assert differ is not None
    assert differ.truth == [true for true, _ in answers(workspace, "baseline")]
    for split in (None, load_split(workspace / "data/validation.safetensors")):
        write_page(compare(runs), differ, split, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert "was not available" in page
        assert "<img" not in page
    before = page
    write_page(compare(runs), differ, None, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == before


@pytest.mark.parametrize(("params", "runs", "tables"), [(6, 2, 1), (7, 2, 2), (7, 7, 1)])
def test_many_params_of_few_runs_are_the_rows_of_a_table(params: int, runs: int, tables: int, tmp_path: Path) -> None:
    values = [{f"key.{place}": f"{place}-{run}" for place in range(params)} for run in range(runs)]
    metrics = {"val/best_accuracy": 0.5, "model/parameters": 1.0, "model/macs": 1.0}
    found = [RunRecord(f"r{run}", "", "", {}, each, metrics, list) for run, each in enumerate(values)]
    write_page(compare(found), None, None, tmp_path / "page.html")
    *_, last = re.findall(r"<table>(.*?)</table>", (tmp_path / "page.html").read_text(), re.DOTALL)
    assert (tmp_path / "page.html").read_text().count("<table>") == tables
    cells = [re.findall(r">([^<>]*)</td>", row) for row in last.split("<tr>")[2:]]
    columns = [list(column) for column in zip(*cells, strict=True)]
    shown = columns[1:] if tables == 2 else [row[-params:] for row in cells]
    assert sorted(shown) == [list(each.values()) for each in values]
    assert last.count("swatch") == runs


def test_disagreements_are_counted_by_who_is_right() -> None:
    differ = made_up("aabbc", "aabcc", "abacb")
    assert differ.where == [1, 2, 4]
    assert differ.counts() == {"both are": 1, "only the first is": 3, "only the second is": 0, "neither is": 1}
    np.testing.assert_array_equal(differ.confusion(), [[1, -1, 0], [-1, 1, 0], [0, -1, 1]])
    texts = [text.get_text() for text in confusion_difference(differ.confusion(), differ.classes).axes[0].texts]
    assert texts == ["+1", "-1", "-1", "+1", "-1", "+1"]


def test_models_evaluated_on_different_images_are_not_held_against_each_other(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = select([str(workspace / "models" / model) for model in ("baseline", "teacher")], [], {})
    monkeypatch.setattr("leanresnet.analysis.disagreement._answers", lambda run: ([run.model], ["a"]))
    with pytest.raises(DataError, match="evaluated on different images"):
        disagreement(*runs)


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff,true\n1,2\n", b"true\n1\n"])
def test_answers_that_no_evaluation_wrote_are_a_mistake(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "confusion.csv").write_bytes(content)
    monkeypatch.setattr("leanresnet.analysis.runs.download", lambda *_: tmp_path / "confusion.csv")
    run = RunRecord("theirs", "", "", {}, {}, {}, list)
    with pytest.raises(DataError, match=r"^run theirs: results/confusion\.csv has no predictions, expected: "):
        disagreement(run, run)
