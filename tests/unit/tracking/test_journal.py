"""A journal on disk: whole, cut short, damaged, and made to do harm."""

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from leanresnet.errors import StorageError
from leanresnet.tracking import mlflow_client as tracking
from leanresnet.tracking.events import Artifact, Begin, Dataset, End, Event, LoggedModel, Metrics, Note, Parent, SetTags
from leanresnet.tracking.journal import Journal, OwnJournal, brought, new_id, open_journal

ID = "20260101-000000-0a0b0c0d"
SHA256 = 64 * "a"
BEGIN = Begin(name="mine", params={"lr": 0.1, "seed": 1, "nesterov": True, "clip": None}, tags={"t": "é"}, weights=None)
EVENTS: list[Event] = [
    BEGIN,
    Metrics(values={"loss": 0.5, "lr": 1e-5}, step=1),
    SetTags(tags={"device": "CPU"}),
    Artifact(name="note.txt", folder="results"),
    Dataset(name="digits", digest="0123", context="training"),
    Note(text="a note", teacher=("teacher", SHA256)),
    Parent(journal=ID),
    LoggedModel(folder="checkpoint"),
    End(status="FINISHED"),
]


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "space"
    folder.mkdir()
    (folder / "params.yaml").touch()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def journal(tmp_path: Path) -> OwnJournal:
    """Whole, with a file; and beside it one that is nobody else's business."""
    folder = tmp_path / "box/.work/journals" / ID
    folder.mkdir(parents=True)
    written = OwnJournal(folder)
    (tmp_path / "note.txt").write_text("as it was")
    written.keep(tmp_path / "note.txt", "results")
    for event in EVENTS:
        written.append(event)
    (tmp_path / "secret").write_text("5ecr3t")
    return written


def line(**changes: Any) -> str:
    return json.dumps({**json.loads(BEGIN.model_dump_json()), **changes})


def test_what_was_written_is_read(journal: OwnJournal) -> None:
    assert Journal(journal.folder).events == EVENTS
    assert journal.file("files", "results", "note.txt").read_text() == "as it was"


def test_events_that_are_no_numbers_in_json_come_back() -> None:
    with open_journal(new_id()) as mine:
        mine.append(BEGIN)
        mine.append(Metrics(values={"loss": float("inf"), "gap": float("nan")}, step=1))
        values = Journal(mine.folder).events[1].model_dump()["values"]
    assert repr(values) == "{'loss': inf, 'gap': nan}"


def test_half_a_line_is_passed_over_by_who_reads_and_replaced_by_who_writes(journal: OwnJournal) -> None:
    lines = journal.folder / "events.jsonl"
    whole = lines.read_bytes()
    lines.write_bytes(whole + b'{"type": "metr')
    assert Journal(journal.folder).events == EVENTS
    assert lines.read_bytes() == whole + b'{"type": "metr'
    again = OwnJournal(journal.folder)
    again.append(BEGIN)
    assert Journal(journal.folder).events == [*EVENTS, BEGIN]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no JSON", "line 1 is damaged (Invalid JSON: "),
        ("[" * 10_000, "line 1 is damaged (Invalid JSON: recursion limit exceeded"),
        (End(status="FAILED").model_dump_json(), "line 1 has the type end, expected: begin"),
        (line(type="later"), "line 1 is damaged (Input tag 'later' found using 'type'"),
        (line(extra=1), "line 1 is damaged (begin: extra: Extra inputs are not permitted)"),
        (line(time=2**70), "line 1 is damaged (begin: time: Input should be less than"),
        (line(weights=["baseline", "' or '1"]), "line 1 is damaged (begin: weights: 1: String should match pattern"),
        (line(tags={"leanresnet.journal": ID}), "tag leanresnet.journal is set by MLflow or by the journal's writer"),
        (line(tags={"mlflow.parentRunId": "1"}), "tag mlflow.parentRunId is set by MLflow or by the journal's writer"),
        (line(params={"lr": ["0.1"]}), "line 1 is damaged (begin: params: lr: "),
    ],
    # The lines hold the time, which each process that collects the tests would put into their names.
    ids=range(10),
)
def test_a_line_that_no_run_writes_is_refused_and_nothing_is_repaired(
    text: str, reason: str, journal: OwnJournal
) -> None:
    lines = journal.folder / "events.jsonl"
    lines.write_text(f"{text}\n{{half")
    for reader in (Journal(journal.folder), OwnJournal(journal.folder)):
        with pytest.raises(StorageError) as caught:
            _ = reader.events
        assert str(caught.value).startswith(f"{lines}: ")
        assert reason in str(caught.value)
    with pytest.raises(StorageError):
        OwnJournal(journal.folder).append(BEGIN)
    assert lines.read_text() == f"{text}\n{{half"


@pytest.mark.parametrize("name", ["../../../../../secret", "/etc/passwd", "..", ".", "", ".ssh", "a/b", "a\x00", "a\n"])
@pytest.mark.parametrize("key", ["name", "folder"])
def test_an_artifact_has_a_plain_name(name: str, key: str, journal: OwnJournal) -> None:
    event = {"type": "artifact", "time": 1, "name": "note.txt", "folder": "results", key: name}
    with (journal.folder / "events.jsonl").open("a") as file:
        file.write(f"{json.dumps(event)}\n")
    with pytest.raises(StorageError, match=f"line 10 is damaged \\(artifact: {key}: String should"):
        _ = Journal(journal.folder).events


def link_the_file(folder: Path, outside: Path) -> None:
    (folder / "files/results/note.txt").unlink()
    (folder / "files/results/note.txt").symlink_to(outside / "secret")


def link_its_folder(folder: Path, outside: Path) -> None:
    (folder / "files/results").rename(folder / "files/kept")
    (outside / "note.txt").write_text("5ecr3t")
    (folder / "files/results").symlink_to(outside)


def link_all_files(folder: Path, outside: Path) -> None:
    (folder / "files").rename(outside / "files")
    (folder / "files").symlink_to(outside / "files")


def make_it_a_folder(folder: Path, outside: Path) -> None:
    link_the_file(folder, outside)
    (folder / "files/results/note.txt").unlink()
    (folder / "files/results/note.txt").mkdir()


def make_it_a_pipe(folder: Path, outside: Path) -> None:
    make_it_a_folder(folder, outside)
    (folder / "files/results/note.txt").rmdir()
    os.mkfifo(folder / "files/results/note.txt")


@pytest.mark.parametrize("spoil", [link_the_file, link_its_folder, link_all_files, make_it_a_folder, make_it_a_pipe])
def test_an_artifact_is_a_file_of_the_journal_itself(
    spoil: Callable[[Path, Path], None], journal: OwnJournal, tmp_path: Path
) -> None:
    spoil(journal.folder, tmp_path)
    with pytest.raises(
        StorageError, match=r"note\.txt: (a link leads to it|missing or not a regular file), expected: a file"
    ):
        journal.file("files", "results", "note.txt")


def test_nothing_is_written_through_a_link(journal: OwnJournal, tmp_path: Path) -> None:
    lines, victim = journal.folder / "events.jsonl", tmp_path / "victim"
    victim.write_text("one line without an end")
    lines.unlink()
    lines.symlink_to(victim)
    for reader in (Journal(journal.folder), OwnJournal(journal.folder)):
        with pytest.raises(StorageError, match="a link leads to it"):
            _ = reader.events
    # One that was opened before.
    with pytest.raises(StorageError, match=r"events\.jsonl: cannot be written \(Too many levels of symbolic links\)"):
        journal.append(BEGIN)
    assert victim.read_text() == "one line without an end"
    link_all_files(journal.folder, tmp_path)
    with pytest.raises(StorageError, match="a link leads to it"):
        journal.keep(victim, "results")
    assert sorted(path.name for path in (tmp_path / "files/results").iterdir()) == ["note.txt"]


def test_events_in_a_pipe_are_refused_unread(journal: OwnJournal) -> None:
    (journal.folder / "events.jsonl").unlink()
    os.mkfifo(journal.folder / "events.jsonl")
    with pytest.raises(StorageError, match="not a regular file, expected: a file of the journal"):
        _ = Journal(journal.folder).events


def test_too_many_events_are_refused_unread(journal: OwnJournal) -> None:
    os.truncate(journal.folder / "events.jsonl", 1 << 40)  # a sparse file
    with pytest.raises(StorageError, match=r"1,099,511,627,776 bytes, expected: at most 268,435,456"):
        _ = Journal(journal.folder).events


@pytest.mark.parametrize("text", ["../../../../victim", "/etc", "", f"{ID}\n", "x' or '1"])
def test_a_journal_has_an_id(text: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    with pytest.raises(StorageError, match="expected: the id of a journal, such as"), open_journal(text):
        pass
    assert list(victim.iterdir()) == []


def test_a_folder_with_another_name_is_no_journal(journal: OwnJournal) -> None:
    other = journal.folder.with_name("x' and 'y\x1b[2J")
    journal.folder.rename(other)
    with pytest.raises(StorageError, match=r"expected: the id of a journal") as caught:
        _ = Journal(other).events
    assert str(caught.value).isprintable()


def test_a_journal_that_was_half_removed_is_sent_no_more(journal: OwnJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow would not receive it to the end without its files. `rmtree` removes them in no order."""
    monkeypatch.setattr("shutil.rmtree", lambda *_, **options: None)
    journal.discard()
    assert Journal(journal.folder).events == []


def test_a_journal_is_no_link(journal: OwnJournal, tmp_path: Path) -> None:
    journal.folder.rename(tmp_path / ID)
    journal.folder.symlink_to(tmp_path / ID)
    (found,) = brought(tmp_path / "box")
    with pytest.raises(StorageError, match="a link leads to it"):
        _ = found.events


def test_what_a_link_leads_to_is_kept(journal: OwnJournal, tmp_path: Path) -> None:
    """DVC may put links to its cache into the workspace."""
    (tmp_path / "cached").write_text("restored")
    (tmp_path / "history.csv").symlink_to("cached")
    journal.keep(tmp_path / "history.csv", "results")
    (tmp_path / "history.csv").unlink()
    assert journal.file("files", "results", "history.csv").read_text() == "restored"


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_brought_folder_is_read_alone(journal: OwnJournal, tmp_path: Path) -> None:
    victim, lock = tmp_path / "victim", Path(f"{journal.folder}.lock")
    victim.write_text("not to be emptied")
    lock.symlink_to(victim)
    before = contents(tmp_path)
    assert [each.id for each in brought(tmp_path / "box")] == [ID]
    assert contents(tmp_path) == before
    lock.unlink()
    with FileLock(lock):
        assert list(brought(tmp_path / "box")) == []
    assert [each.id for each in brought(tmp_path / "box")] == [ID]


class Server:
    """Takes everything, and knows one run, that of the teacher."""

    def __init__(self) -> None:
        self.artifacts: list[Path] = []
        self.touched: set[str] = set()

    def MlflowClient(self) -> "Server":  # noqa: N802
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, experiments: list[str], query: str, **options: object) -> list[Any]:
        assert query.count("'") == 2, query
        return []

    def search_logged_models(self, experiments: list[str], query: str) -> list[Any]:
        return []

    def create_run(self, *values: Any) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="own"), data=SimpleNamespace(metrics={}))

    def log_artifact(self, run_id: str, path: str, folder: str) -> None:
        self.touched.add(run_id)
        self.artifacts.append(Path(path))

    def note(self, run_id: str, *values: object, **options: object) -> None:
        self.touched.add(run_id)

    log_batch = update_run = set_terminated = log_inputs = note


NASTY: list[Any] = [
    "../../../../../secret",
    "/etc/passwd",
    "",
    "x' or '1",
    "\x1b[2J",
    2**70,
    -1,
    float("nan"),
    None,
    True,
    [],
    {"mlflow.user": "x"},
    [["a"] * 5] * 5,
    "end",
]


def mutated(lines: list[bytes], chance: random.Random) -> bytes:
    """One or two changes: of a byte, of a line's end, of the order, of a value."""
    lines = list(lines)
    for _ in range(chance.randint(1, 2)):
        number = chance.randrange(len(lines))
        place = chance.randrange(len(lines[number]))
        match chance.randrange(5):
            case 0:
                lines[number] = lines[number][:place] + chance.randbytes(1) + lines[number][place + 1 :]
            case 1:
                lines[number] = lines[number][: place + 1]
            case 2:
                chance.shuffle(lines)
            case _:
                event = json.loads(EVENTS[number].model_dump_json())
                event[chance.choice(list(event))] = chance.choice(NASTY)
                lines[number] = json.dumps(event).encode() + b"\n"
    return b"".join(lines)


def test_a_mutated_journal_is_refused_in_a_line_or_touches_its_own_run_and_files_alone(
    journal: OwnJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, chance, refused, unsaid = Server(), random.Random(0), 0, 0
    monkeypatch.setattr(tracking, "connect", lambda: server)
    # It has no model.
    lines = (journal.folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    for _ in range(400):
        (journal.folder / "events.jsonl").write_bytes(mutated(lines, chance))
        found = Journal(journal.folder)
        try:
            if found.events:
                deliver = tracking.MlflowWriter(found, set())
                for event in found.events:
                    if not isinstance(event, LoggedModel):
                        deliver(event)
        except StorageError as error:
            refused += str(error).count("\n") == 0
            unsaid += str(error).count("\n") > 0
    assert (refused > 200, unsaid) == (True, 0)
    assert server.touched == {"own"}
    assert set(server.artifacts) == {journal.folder / "files/results/note.txt"}


def test_a_file_on_another_file_system_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a workspace whose files DVC has replaced by links to its cache."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    (tmp_path / "note.txt").write_text("as it was")
    monkeypatch.setattr(os, "link", refuse)
    with open_journal(new_id()) as journal:
        journal.keep(tmp_path / "note.txt", "results")
        assert journal.file("files", "results", "note.txt").read_text() == "as it was"
