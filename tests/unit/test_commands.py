"""What commands hand on to the library, without processes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import preset_text

import pipeline.compare as compare_command
import pipeline.ui as ui_command
from leanresnet.analysis import backfill, comparison, search
from leanresnet.data import sources
from leanresnet.errors import ConfigError, StorageError
from leanresnet.models import checkpoint
from leanresnet.serving import export
from leanresnet.tracking import connection, delivery
from pipeline.cli import cli


class Calls:
    """A function that keeps its arguments, and returns `answer`."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer
        self.given: list[tuple[Any, ...]] = []

    def __call__(self, *given: Any) -> Any:
        self.given.append(given)
        return self.answer


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(preset_text("default"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "handed_on"),
    [
        ([], (True, None)),
        (["--group-by", "none"], (False, None)),
        (["--against", "a"], (True, "a")),
    ],
)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_compare_groups_and_prints_as_it_is_asked(
    arguments: list[str], handed_on: tuple[bool, str | None], is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = SimpleNamespace(notes=["a note"], markdown=lambda: "| Markdown |", text=lambda width: "columns")
    compared = Calls(table)
    monkeypatch.setattr(comparison, "select", Calls("the runs"))
    monkeypatch.setattr(comparison, "compare", compared)
    stream = SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: is_terminal))
    monkeypatch.setattr(compare_command, "sys", stream)
    assert invoke("compare", *arguments).output == f"{'columns' if is_terminal else '| Markdown |'}\n\na note\n"
    assert compared.given == [("the runs", *handed_on)]


@pytest.mark.parametrize(("arguments", "budget"), [([], 5_000_000), (["--budget", "1000"], 1000)])
def test_search_has_the_budget_of_the_params_or_its_own(
    arguments: list[str], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Calls((0, []))
    monkeypatch.setattr(search, "near_budget", counted)
    assert f"0 with 95 to 100 % of {budget:,}" in invoke("search", *arguments).output
    assert counted.given[0][1:] == (budget, 0.95, 10)


def test_sync_sends_the_journals_of_the_folder_that_it_is_given(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, restored = Calls((2, 0)), Calls(1)
    monkeypatch.setattr(delivery, "sync", sent)
    monkeypatch.setattr(backfill, "log_restored", restored)
    (workspace / "brought/.work/journals").mkdir(parents=True)
    assert invoke("sync", "brought").output == "2 logged, 0 left\n"
    assert (sent.given, restored.given) == ([(Path("brought"),)], [])
    assert invoke("sync").output == "2 logged, 0 left\n1 restored by DVC, logged from their outputs\n"
    assert (sent.given[1:], restored.given) == ([(workspace,)], [(workspace,)])


@pytest.mark.parametrize(("arrived", "asked"), [(1, 1), (0, 0)])
def test_a_journal_that_is_left_does_not_keep_restored_models_from_mlflow(
    arrived: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where MLflow answers."""
    restored = Calls(0)
    monkeypatch.setattr(delivery, "sync", Calls((arrived, 2)))
    monkeypatch.setattr(backfill, "log_restored", restored)
    with pytest.raises(StorageError, match=rf"^2 of {arrived + 2} could not be logged, expected: a server that answer"):
        invoke("sync")
    assert len(restored.given) == asked


@pytest.mark.parametrize(
    ("arguments", "form", "file"),
    [([], "onnx", "model.onnx"), (["--format", "pt2"], "pt2", "model.pt2"), (["--out", "other"], "onnx", "other")],
)
def test_export_writes_the_format_that_it_is_given(
    arguments: list[str], form: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Calls(SimpleNamespace(difference=0.0, latency_ms=1.0, torch_latency_ms=2.0))
    monkeypatch.setattr(checkpoint, "load_model", Calls("the model"))
    monkeypatch.setattr(export, "export", written)
    invoke("export", *arguments)
    assert written.given == [("the model", form, Path(file))]


@pytest.mark.parametrize(("arguments", "server"), [(["--addresses"], False), ([], True)])
def test_ui_prints_addresses_and_serves_nothing_if_asked_or_there_is_a_server(
    arguments: list[str], server: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "page_addresses", Calls({"results": "#/results"}))
    monkeypatch.setattr(connection, "has_server", Calls(server))
    monkeypatch.setattr(connection, "page", Calls("http://127.0.0.1:7"))
    monkeypatch.setattr(ui_command, "check_free", lambda port: pytest.fail("serves"))
    assert invoke("ui", *arguments).output == "results  http://127.0.0.1:7/#/results\n"


def test_params_describes_a_key_by_its_end() -> None:
    line, *more = invoke("params", "optimizer.momentum").output.splitlines()
    assert (line, more) == ("train.baseline.optimizer.momentum: Momentum of sgd and muon. [number >= 0, < 1]", [])
    with pytest.raises(ConfigError, match=r"^momentm: unknown key \(did you mean momentum\?\)"):
        invoke("params", "momentm")


@pytest.mark.parametrize(
    ("variable", "arguments", "expected"),
    [("there", [], "there"), ("there", ["--archive", "here"], "here"), ("", [], None)],
)
def test_download_takes_the_copy_that_it_is_given(
    variable: str, arguments: list[str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = Calls()
    monkeypatch.setattr(sources, "fetch_source", fetched)
    monkeypatch.setenv("LEANRESNET_CIFAR10", variable)
    invoke("download", "--out", "data", *arguments)
    assert [given[1:] for given in fetched.given] == [(Path("data"), expected and Path(expected))]
