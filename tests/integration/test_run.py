"""A run's journal, and MLflow: away, hanging, failing, dying and coming back."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import outside_environment
from databases import client_of, place_database, runs_of
from forked import run_code
from helpers import files_up_to, read_only
from mlflow.entities import Run as RunRecord
from mlflow.tracking import MlflowClient
from waiting import PATIENCE, free_port, wait_for

from leanresnet.analysis import runs
from leanresnet.errors import StoppedError, StorageError
from leanresnet.tracking import connection, delivery
from leanresnet.tracking import mlflow_client as tracking
from leanresnet.tracking import run as reporting
from leanresnet.tracking.delivery import Sender, sync
from leanresnet.tracking.events import WEIGHTS_TAG, Begin, End, Metrics
from leanresnet.tracking.run import Run, add_to_run, start_run

EPOCHS = 5
BEGIN = Begin(name="mine", params={}, tags={}, weights=None)
WEIGHTS = 64 * "a"


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "space"
    folder.mkdir()
    (folder / "params.yaml").touch()
    place_database(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return folder


def client() -> MlflowClient:
    return client_of(Path.cwd())


def recorded() -> list[RunRecord]:
    return runs_of(Path.cwd())


def steps(run: RunRecord, name: str = "loss") -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client().get_metric_history(run.info.run_id, name)]


def journals() -> list[Path]:
    return sorted(Path(".work/journals").glob("*/"))


def report(run: Run, first: int = 1, last: int = EPOCHS) -> None:
    """Metrics of some epochs and one of all else."""
    Path("note.txt").write_text("as it was")
    for epoch in range(first, last + 1):
        run.log_metrics({"loss": 1 / epoch, "accuracy": epoch / 10}, epoch)
    run.set_tags({"colour": "blue"})
    run.log_artifact(Path("note.txt"), "results")
    run.log_dataset("digits", "0123", "training", {"one": 3, "two": 2})


def assert_is_complete(run: RunRecord, status: str = "FINISHED") -> None:
    assert run.info.status == status
    assert steps(run) == [(epoch, 1 / epoch) for epoch in range(1, EPOCHS + 1)]
    assert steps(run, "accuracy") == [(epoch, epoch / 10) for epoch in range(1, EPOCHS + 1)]
    assert (run.data.params, run.data.tags["colour"]) == ({"lr": "0.1"}, "blue")
    kept = Path(client().download_artifacts(run.info.run_id, "results/note.txt"))
    assert kept.read_text() == "as it was"
    assert [entry.dataset.digest for entry in run.inputs.dataset_inputs] == ["0123"]


@contextmanager
def refusing() -> Iterator[str]:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"


@contextmanager
def hanging() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def failing() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("server", [refusing, hanging, failing])
def test_a_server_that_does_not_serve_costs_a_line_and_no_metric(
    server: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Whatever waited for an answer of the server that hangs would wait as long.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(PATIENCE)))
    monkeypatch.setattr(reporting, "LAST_SECONDS", 0.0 if server is hanging else PATIENCE)
    with server() as address:  # type: ignore[operator]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with start_run("name", {"lr": 0.1}, {}) as run:
            report(run)
        error = capsys.readouterr().err
        assert error.startswith("warning: MLflow has not received all of this run")
        assert error.count("\n") == 1
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        # The run's thread may just look at what is left, and hold the journal for a moment.
        wait_for(lambda: sync(Path.cwd()) == (0, 1))
    run._sender._thread.join()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    # The stage's file is another one by then.
    Path("note.txt").unlink()
    Path("note.txt").write_text("later")
    assert sync(Path.cwd()) == (1, 0)
    (found,) = recorded()
    assert_is_complete(found)
    assert journals() == []
    assert sync(Path.cwd()) == (0, 0)


def test_of_many_runs_that_are_left_a_server_that_is_away_costs_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with refusing() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for _ in range(3):
            with start_run("name", {}, {}):
                pass
        capsys.readouterr()
        with add_to_run("again", {}, {}, ("baseline", WEIGHTS)) as run:
            pass
        run._sender._thread.join()
        reason = f"({address}: [Errno 111] Connection refused)"
        line = f"warning: MLflow has not received all of {{}} {reason}; {{}} keeps it for `leanresnet sync`"
        assert capsys.readouterr().err == line.format("this run", run._journal.folder) + "\n"
        assert sync(Path.cwd()) == (0, 4)
        assert capsys.readouterr().err == line.format("a run", Path.cwd() / journals()[0]) + "\n"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def mlflow_server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    store = ["--backend-store-uri", f"sqlite:///{Path.cwd() / 'mlflow.db'}", "--artifacts-destination", "mlartifacts"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            *store,
        ],
        env=outside_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_that_dies_midway_has_all_of_the_run_after_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's database is that of the workspace, which receives the rest without a second server."""
    # With an experiment of the server's, the artifacts would be behind it.
    connection.connect()
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with start_run("name", {"lr": 0.1}, {}) as run:
        with mlflow_server(port):
            run.log_metrics({"loss": 1.0, "accuracy": 0.1}, 1)
            run.log_metrics({"loss": 0.5, "accuracy": 0.2}, 2)
            wait_for(lambda: run._sender._sent == 3)
        report(run, first=3)
    assert len(journals()) == 1
    run._sender._thread.join()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (found,) = recorded()
    assert (found.info.status, steps(found)) == ("RUNNING", [(1, 1.0), (2, 0.5)])
    assert sync(Path.cwd()) == (1, 0)
    (found,) = recorded()
    assert_is_complete(found)
    assert journals() == []


def test_a_journal_handed_on_twice_adds_nothing(tmp_path: Path) -> None:
    with reporting.open_journal(reporting.new_id()) as journal:
        run = Run(journal)
        run.begin("name", {"lr": 0.1}, {})
        report(run)
        run.end("FINISHED")
        shutil.copytree(".work/journals", tmp_path / "box" / ".work" / "journals")
        run.close()
    (found,) = recorded()
    assert_is_complete(found)
    assert sync(tmp_path / "box") == (1, 0)
    (again,) = recorded()
    assert again.info.run_id == found.info.run_id
    assert_is_complete(again)


def test_a_machine_without_mlflow_keeps_its_run_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    box = tmp_path / "box"
    box.mkdir()
    (box / "params.yaml").touch()
    with monkeypatch.context() as there:
        there.chdir(box)
        there.setattr(connection.importlib.util, "find_spec", lambda name: None)
        # Two ids of one second sort by chance.
        there.setattr(reporting, "new_id", iter(("20260101-000000-0a0b0c0d", "20260101-000001-0a0b0c0d")).__next__)
        with start_run("name", {"lr": 0.1}, {"model": "baseline"}) as run:
            run.set_tags({WEIGHTS_TAG: WEIGHTS})
            report(run)
        evaluate(0.5)
    assert "mlflow is not installed" in capsys.readouterr().err
    # The other machine has another process.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    before = {path: path.stat().st_ctime_ns for path in box.rglob("*")}
    for _ in range(2):
        assert sync(box) == (2, 0)
        (found,) = recorded()
        assert_is_complete(found)
        assert steps(found, "test/accuracy") == [(6, 0.5)]
    assert {path: path.stat().st_ctime_ns for path in box.rglob("*")} == before


def evaluate(accuracy: float) -> None:
    """Of the weights that are no file; all that it reports goes into a run of its own if none made them."""
    with add_to_run("again", {"lr": 0.1}, {"model": "baseline"}, ("baseline", WEIGHTS)) as run:
        with run.only_if_new():
            run.set_tags({WEIGHTS_TAG: WEIGHTS, "git.commit": "unknown"})
            run.end("FINISHED")
        run.log_metrics({"test/accuracy": accuracy, "val/best_accuracy": accuracy}, 6)
        run.set_tags({"evaluate.device": "CPU"})


def test_an_evaluation_sends_what_was_left_before_it_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while torch computes: a model may be among it, see `connection.set_environment`."""
    with monkeypatch.context() as before:
        before.setattr(connection.importlib.util, "find_spec", lambda name: None)
        with start_run("name", {"lr": 0.1}, {"model": "baseline"}) as training:
            training.set_tags({WEIGHTS_TAG: WEIGHTS})
            report(training)
    at_its_end, writer = [], tracking.MlflowWriter
    with add_to_run("again", {}, {}, ("baseline", WEIGHTS)) as run:

        def connected(*given: object) -> tracking.MlflowWriter:
            at_its_end.append(run._sender._closing)
            return writer(*given)

        monkeypatch.setattr(tracking, "MlflowWriter", connected)
        run.log_metrics({"test/accuracy": 0.5}, 6)
        time.sleep(0.5)
    assert at_its_end == [True, True]
    (found,) = recorded()
    assert_is_complete(found)
    assert steps(found, "test/accuracy") == [(6, 0.5)]


def test_an_evaluation_makes_no_run_while_that_of_the_training_is_in_a_journal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when another process sends it at the moment, and holds it locked."""
    with monkeypatch.context() as before:
        before.setattr(connection.importlib.util, "find_spec", lambda name: None)
        with start_run("name", {"lr": 0.1}, {"model": "baseline"}, "20260101-000000-00000001") as training:
            training.set_tags({WEIGHTS_TAG: WEIGHTS})
            report(training)
    (left,) = journals()
    with (
        reporting.open_journal(left.name),
        add_to_run("again", {}, {"model": "baseline"}, ("baseline", WEIGHTS)) as run,
    ):
        with run.only_if_new():
            run.set_tags({WEIGHTS_TAG: WEIGHTS, "git.commit": "unknown"})
        run.log_metrics({"test/accuracy": 0.5}, 6)
    with reporting.open_journal(left.name):
        assert sync(Path.cwd()) == (0, 1)
    assert recorded() == []
    assert f"{left}: not received yet, and it is the training of this model" in capsys.readouterr().err
    assert sync(Path.cwd()) == (2, 0)
    (found,) = recorded()
    assert_is_complete(found)
    assert steps(found, "test/accuracy") == [(6, 0.5)]


def written_elsewhere(box: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[], object]) -> Path:
    """The one journal that `write` leaves on a machine without MLflow."""
    box.mkdir()
    (box / "params.yaml").touch()
    with monkeypatch.context() as there:
        there.chdir(box)
        there.setattr(connection.importlib.util, "find_spec", lambda name: None)
        write()
    (journal,) = (box / ".work/journals").glob("*/")
    return journal


def train_elsewhere() -> None:
    with start_run("theirs", {"lr": 0.1}, {}) as run:
        report(run)


def test_a_run_has_an_address_when_mlflow_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with start_run("mine", {}, {}) as run:
        pass
    (mine,) = recorded()
    place = f"#/experiments/{mine.info.experiment_id}/runs/{mine.info.run_id}?workflowType=machine_learning"
    assert run.address == f"http://127.0.0.1:5000/{place}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with start_run("lost", {}, {}) as run:
        pass
    assert run.address is None


def test_a_brought_journal_uploads_no_file_of_this_machine_and_changes_no_run_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/id_rsa").write_text("5ecr3t")
    with start_run("mine", {"lr": 0.1}, {"model": "baseline"}) as run:
        run.set_tags({WEIGHTS_TAG: WEIGHTS, "colour": "blue"})
    (mine,) = recorded()
    climbing, linked = (
        written_elsewhere(tmp_path / name, monkeypatch, train_elsewhere) for name in ("climbing", "linked")
    )
    lines = (climbing / "events.jsonl").read_text()
    (climbing / "events.jsonl").write_text(lines.replace('"note.txt"', '"../../../../../../home/id_rsa"'))
    (linked / "files/results/note.txt").unlink()
    (linked / "files/results/note.txt").symlink_to(tmp_path / "home/id_rsa")
    written_elsewhere(tmp_path / "claiming", monkeypatch, lambda: evaluate(1.0))
    capsys.readouterr()
    assert [sync(tmp_path / name) for name in ("climbing", "linked", "claiming")] == [(0, 1), (0, 1), (1, 0)]
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    assert "line 8 is damaged" in error
    assert "note.txt: a link leads to it" in error
    kept = [path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()]
    assert not any(b"5ecr3t" in content for content in kept)
    after = client().get_run(mine.info.run_id)
    assert after.data.to_dictionary() == mine.data.to_dictionary()
    assert after.info.status == "FINISHED"
    # What it claims is in a run of its own.
    assert [run.data.metrics.get("test/accuracy") for run in recorded() if run.info.run_name == "again"] == [1.0]


def test_a_file_outside_is_not_cut_to_whole_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "box/.work/journals/20260101-000000-0a0b0c0d/events.jsonl"
    lines.parent.mkdir(parents=True)
    (tmp_path / "victim").write_text("one line without an end")
    lines.symlink_to(tmp_path / "victim")
    assert sync(tmp_path / "box") == (0, 1)
    assert "events.jsonl: a link leads to it" in capsys.readouterr().err
    assert (tmp_path / "victim").read_text() == "one line without an end"


KILLED = """
import os, sys
from leanresnet.tracking.run import Run, new_id, open_journal
os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
with open_journal(new_id()) as journal:
    run = Run(journal)
    run.begin("name", {"lr": 0.1}, {})
    for epoch in (1, 2, 3):
        run.log_metrics({"loss": 1 / epoch}, epoch)
    os._exit(9)
"""


def test_a_run_that_died_without_a_word_is_marked_at_the_next_start_and_goes_on_when_asked(tmp_path: Path) -> None:
    assert run_code(KILLED, cwd=Path.cwd(), env=outside_environment()).returncode == 9
    (journal,) = journals()
    # Its last line is half a line.
    with (journal / "events.jsonl").open("a") as file:
        file.write('{"type": "metr')
    with start_run("other", {}, {}):
        pass
    other, dead = recorded()
    assert (other.info.run_name, other.info.status) == ("other", "FINISHED")
    assert (dead.info.run_name, dead.info.status) == ("name", "KILLED")
    assert steps(dead) == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    with start_run("name", {"lr": 0.1}, {}, journal.name) as run:
        run.log_metrics({"loss": 1 / 3, "accuracy": 0.3}, 3)
        report(run, first=4)
    found = client().get_run(dead.info.run_id)
    assert found.info.status == "FINISHED"
    # What it had is not logged again.
    assert steps(found) == [(epoch, 1 / epoch) for epoch in range(1, EPOCHS + 1)]
    assert steps(found, "accuracy") == [(3, 0.3), (4, 0.4), (5, 0.5)]


def test_of_an_epoch_that_was_trained_again_the_last_values_count() -> None:
    """As on a GPU, where the epochs after the last snapshot do not give the same values again."""
    journal = reporting.new_id()
    with start_run("name", {}, {}, journal) as run:
        run.log_metrics({"val/accuracy": 0.5}, 1)
        run.log_metrics({"val/accuracy": 0.7, "val/best_accuracy": 0.7}, 2)
    with start_run("name", {}, {}, journal) as run:
        run.log_metrics({"val/accuracy": 0.6, "val/best_accuracy": 0.6}, 2)
        run.log_metrics({"val/accuracy": 0.8, "val/best_accuracy": 0.8}, 3)
    for _ in range(2):  # the events of a journal may be sent again
        (found,) = recorded()
        assert steps(found, "val/accuracy") == [(1, 0.5), (2, 0.7), (2, 0.6), (3, 0.8)]
        (record,) = runs.find_finished()
        assert record.validation() == [0.5, 0.6, 0.8]
        assert record.metrics["val/best_accuracy"] == 0.8
        with start_run("name", {}, {}, journal):
            pass


def test_a_journal_that_cannot_arrive_holds_nothing_up(capsys: pytest.CaptureFixture[str]) -> None:
    damaged, unknown = "20260101-000000-00000001", "20260101-000000-00000002"
    with reporting.open_journal(damaged) as journal:
        (journal.folder / "events.jsonl").write_text("neither JSON\n")
    with reporting.open_journal(unknown) as journal:
        journal.append(BEGIN)
        with (journal.folder / "events.jsonl").open("a") as file:
            file.write('{"type": "from a later version"}\n')
    with reporting.open_journal("20260101-000000-00000003") as journal:
        for event in (
            BEGIN.model_copy(update={"name": "evaluated", "weights": ("other", WEIGHTS)}),
            End(status="FINISHED"),
        ):
            journal.append(event)
    with start_run("name", {"lr": 0.1}, {}) as run:
        report(run)
    assert_is_complete(next(run for run in recorded() if run.info.run_name == "name"))
    assert sorted(run.info.run_name for run in recorded()) == ["evaluated", "name"]
    assert [journal.name for journal in journals()] == [damaged, unknown]
    error = capsys.readouterr().err
    assert damaged in error
    assert unknown in error
    assert sync(Path.cwd()) == (0, 2)


def test_a_line_that_the_disk_cut_short_is_taken_back() -> None:
    with reporting.open_journal(reporting.new_id()) as journal:
        journal.append(BEGIN)
        lines = journal.folder / "events.jsonl"
        with (
            files_up_to(lines.stat().st_size + 20),
            pytest.raises(StorageError, match=r"events\.jsonl: cannot be written \(File too large\); it takes \d+ byt"),
        ):
            journal.append(Metrics(values={"loss": 0.5}, step=1))
        journal.append(End(status="FAILED"))
        assert [json.loads(line)["type"] for line in lines.read_text().splitlines()] == ["begin", "end"]


def test_a_database_that_was_removed_gets_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with start_run("name", {"lr": 0.1}, {}) as run:
        run.log_metrics({"loss": 1.0, "accuracy": 0.1}, 1)
        wait_for(lambda: run._sender._sent == 2)
        (first,) = recorded()
        client().delete_run(first.info.run_id)
        # As a client does that is told there is no such run.
        report(run, first=2)
    (found,) = recorded()
    assert_is_complete(found)


def test_a_journal_in_use_is_left_alone() -> None:
    with reporting.open_journal(reporting.new_id()) as journal:
        journal.append(BEGIN)
        assert sync(Path.cwd()) == (0, 0)
        assert [event.type for event in journal.events] == ["begin"]


@pytest.mark.parametrize(
    ("error", "is_launched", "status", "seconds"),
    [
        (ZeroDivisionError(), False, "FAILED", reporting.LAST_SECONDS),
        (ZeroDivisionError(), True, "FAILED", reporting.LOST_SECONDS),
        (KeyboardInterrupt(), False, "KILLED", reporting.STOP_SECONDS),
        (StoppedError("by SIGTERM", 15), True, "KILLED", reporting.STOP_SECONDS),
    ],
)
def test_an_exception_marks_the_run(
    error: BaseException, is_launched: bool, status: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was asked to stop waits less for MLflow, and so does one that torchrun will end."""
    monkeypatch.setattr(reporting, "LAST_SECONDS", 30.0)
    if is_launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    waited: list[float] = []
    close = Sender.close

    def waiting(sender: Sender, seconds: float) -> bool:
        waited.append(seconds)
        return close(sender, PATIENCE)

    monkeypatch.setattr(Sender, "close", waiting)
    with pytest.raises(type(error)), start_run("name", {}, {}):
        raise error
    assert [run.info.status for run in recorded()] == [status]
    assert waited == [seconds]


def test_evaluation_adds_to_the_run_that_made_the_weights() -> None:
    with start_run("trained", {"lr": 0.1}, {"model": "baseline"}) as run:
        run.set_tags({WEIGHTS_TAG: WEIGHTS})
    for value in (0.5, 0.5, 0.6, 0.5):
        with add_to_run("again", {"lr": 0.1}, {"model": "baseline"}, ("baseline", WEIGHTS)) as run:
            with run.only_if_new():
                run.set_tags({"git.commit": "unknown"})
                run.end("FINISHED")
            run.log_metrics({"test/accuracy": value}, 6)
    (found,) = recorded()
    assert (found.info.run_name, found.info.status) == ("trained", "FINISHED")
    assert found.data.tags["git.commit"] != "unknown"
    # The same value is the same evaluation; another one counts, and the last one is the run's.
    assert steps(found, "test/accuracy") == [(6, 0.5), (6, 0.6), (6, 0.5)]
    assert found.data.metrics["test/accuracy"] == 0.5


def test_evaluation_without_such_a_run_makes_one() -> None:
    for model in ("baseline", "student"):
        with add_to_run("made", {"lr": 0.1}, {"model": model}, (model, WEIGHTS)) as run:
            with run.only_if_new():
                run.set_tags({WEIGHTS_TAG: WEIGHTS, "git.commit": "unknown"})
                run.end("FINISHED")
            run.log_metrics({"test/accuracy": 0.5}, 6)
    found = recorded()
    assert {run.data.tags["model"]: run.data.tags["git.commit"] for run in found} == {
        "baseline": "unknown",
        "student": "unknown",
    }
    assert [run.info.status for run in found] == ["FINISHED"] * 2


def test_the_workspace_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".work").write_text("a file")
    with pytest.raises(StorageError, match=r"\.work"), start_run("name", {}, {}):
        pass


def test_journals_in_a_read_only_workspace_are_one_line_and_stay(workspace: Path) -> None:
    lines = workspace / ".work/journals/20260101-000000-0a0b0c0d/events.jsonl"
    lines.parent.mkdir(parents=True)
    lines.write_text("")
    with read_only(workspace) as held_to_it:
        command = [*held_to_it, "leanresnet", "sync"]
        done = subprocess.run(command, cwd=workspace, env=outside_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert re.fullmatch(rf"error: {lines.parent}\.lock: cannot be written \(Permission denied\)\n", done.stderr)
    assert lines.exists()


def test_a_server_that_does_not_answer_is_asked_after_pauses_of_at_most_half_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sender = Sender.__new__(Sender)
    pauses: list[float | None] = []

    class Wake:
        def wait(self, seconds: float | None) -> None:
            pauses.append(seconds)
            sender._closing = len(pauses) == 7

        def clear(self) -> None:
            pass

    def refuse() -> None:
        raise ConnectionError("away")

    warned: list[str] = []
    monkeypatch.setattr(delivery, "connect", refuse)
    monkeypatch.setattr(delivery, "_warn", lambda what, why, journal: warned.append(why))
    with reporting.open_journal(reporting.new_id()) as journal:
        journal.append(BEGIN)
        vars(sender).update(_journal=journal, _deliver=None, _sent=0, _closing=False, _failed=False, _wake=Wake())
        sender._work()
    assert pauses == [None, 2, 4, 8, 16, 30, 30]
    assert warned == ["away"]


def test_a_read_only_workspace_can_be_read(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_run("name", {}, {}):
        pass

    def refuse(path: Path) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(connection, "FileLock", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert [run.name for run in runs.find_finished()] == ["name"]


def test_what_is_reported_is_on_disk_at_once() -> None:
    with reporting.open_journal(reporting.new_id()) as journal:
        run = Run(journal)
        run.begin("name", {}, {})
        run.log_metrics({"loss": 0.5}, 1)
        lines = (journal.folder / "events.jsonl").read_text().splitlines()
        assert [json.loads(line)["type"] for line in lines] == ["begin", "metrics"]
        run.close()
