"""Journals: the reports of runs, kept on disk until MLflow has received them.

In the workspace, .work/journals/<id>/ holds events.jsonl, with one event per line, and the files that the run logs. A
journal is locked while a process writes it.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from leanresnet.errors import StorageError
from leanresnet.files import no_link, not_written, workspace
from leanresnet.tracking.events import JOURNAL_ID, WEIGHTS_TAG, Begin, Event, SetTags, Weights, read_event

# The largest events.jsonl that is read. A training of 1,000 epochs that is resumed 100 times writes a quarter of this.
MOST_BYTES = 1 << 28


class Journal:
    """The events of one run in the order of their reports, and the files that they name; this class only reads them.

    The folder may come from another machine, so links that lead out of it are refused.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = folder / "events.jsonl"

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def begin(self) -> Begin:
        """The first event; the journal must have events."""
        first = self.events[0]
        assert isinstance(first, Begin)
        return first

    @property
    def adds(self) -> bool:
        """Whether it is the journal of an evaluation, which adds to the run of a training."""
        return bool(self.events) and self.begin.weights is not None

    @property
    def made(self) -> Weights | None:
        """The weights that a training reported; None for an evaluation, and for a training that has reported none.

        Raises:
            StorageError: if the events are damaged or too many.
        """
        if not self.events or self.adds:
            return None
        reported = [each.tags for each in self.events if isinstance(each, SetTags)]
        sha256 = [tags[WEIGHTS_TAG] for tags in reported if WEIGHTS_TAG in tags]
        return (self.begin.tags.get("model", ""), sha256[-1]) if sha256 else None

    @cached_property
    def events(self) -> list[Event]:
        """The events; an incomplete last line, left by a process that died while it wrote, is ignored.

        Raises:
            StorageError: if the file is damaged or too large.
        """
        check_id(self.id, self.folder.parent)
        if not self._whole_lines:
            return []
        events = []
        for number, line in enumerate(self._whole_lines.removesuffix(b"\n").split(b"\n"), start=1):
            try:
                events.append(read_event(line))
            except ValueError as error:
                raise StorageError(f"{self._lines}: line {number} is damaged ({error})") from error
        if not isinstance(events[0], Begin):
            raise StorageError(f"{self._lines}: line 1 has the type {events[0].type}, expected: begin")
        return events

    @cached_property
    def _whole_lines(self) -> bytes:
        if not _without_link(self._lines).exists():
            return b""
        size = self.file("events.jsonl").stat().st_size
        if size > MOST_BYTES:
            raise StorageError(f"{self._lines}: {size:,} bytes, expected: at most {MOST_BYTES:,}")
        content = self._lines.read_bytes()
        return content[: content.rfind(b"\n") + 1]

    def file(self, *names: str) -> Path:
        """Return the path of a file in the journal's folder.

        Args:
            names: the names of the folders and of the file, without separators.

        Raises:
            StorageError: if the file does not exist, is not a regular file, or its path has a link.
        """
        path = _without_link(self.folder.joinpath(*names))
        if not path.is_file():
            raise StorageError(f"{path}: missing or not a regular file, expected: a file of the journal")
        return path


class OwnJournal(Journal):
    """A locked journal of this workspace, which can be written, and removed when MLflow has received all of it."""

    @cached_property
    def _end(self) -> int:
        """The position of the next line in bytes."""
        return len(self._whole_lines)

    def append(self, event: Event) -> None:
        """Write an event; raise StorageError if it cannot be written."""
        events, line = self.events, f"{event.model_dump_json()}\n".encode()
        try:
            with open(self._lines, "ab", opener=no_link) as file:
                # Remove an incomplete line, which a full disk or a process that died may have left.
                file.truncate(self._end)
                file.write(line)
        except OSError as error:
            raise not_written(self._lines, error, len(line)) from error
        self._end += len(line)
        events.append(event)

    def keep(self, path: Path, folder: str) -> None:
        """Keep the current content of a file, as `file("files", folder, path.name)`.

        Raises:
            StorageError: if it cannot be written.
        """
        target = self.folder / "files" / folder / path.name
        try:
            _without_link(target.parent).mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            # Stages replace their files and never change them, so a hard link keeps the content. DVC may have
            # replaced the file by a link to its cache, so the hard link is made to the file at its end.
            try:
                os.link(os.path.realpath(path), target)
            except OSError:
                shutil.copy(path, target)
        except OSError as error:
            raise not_written(target, error) from error

    def discard(self) -> None:
        # The events go first: if the process dies during the removal, events without their files cannot be sent.
        with suppress(OSError):
            self._lines.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        _lock(self.folder).unlink(missing_ok=True)


def new_id() -> str:
    """Return a new id of a journal; ids sort by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


def check_id(text: str, place: Path) -> str:
    """Return `text` if it has the form of an id; otherwise raise StorageError, which names `place` as its origin."""
    if not re.fullmatch(JOURNAL_ID, text):
        raise StorageError(f"{place}: {text[:60]!r}, expected: the id of a journal, such as {new_id()}")
    return text


@contextmanager
def open_journal(journal_id: str) -> Iterator[OwnJournal]:
    """Open and lock the journal with this id; create it if it does not exist.

    Raises:
        StorageError: if the id is not valid, or the workspace cannot be written.
    """
    journals = _journals(workspace())
    folder = journals / check_id(journal_id, journals)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock(folder)).acquire()
    except OSError as error:
        raise not_written(error.filename or folder, error) from error
    with lock:
        # A process that sent the journal to MLflow in the meantime has removed the folder.
        folder.mkdir(exist_ok=True)
        yield OwnJournal(folder)


def left_behind() -> Iterator[OwnJournal]:
    """Iterate over the workspace's journals that no process uses, the oldest first. The current one is locked.

    Raises:
        StorageError: if the workspace cannot be written.
    """
    for folder in _folders(workspace()):
        try:
            with FileLock(_lock(folder), timeout=0):
                if folder.exists():
                    yield OwnJournal(folder)
        except Timeout:
            continue
        except OSError as error:
            raise not_written(_lock(folder), error) from error


def training_of(weights: Weights) -> Journal | None:
    """Return the workspace's journal, which may be in use, of the training that made these weights, or None."""
    for journal in map(Journal, _folders(workspace())):
        # It may be sent and removed in the meantime, or be damaged.
        with suppress(OSError, StorageError):
            if journal.made == weights:
                return journal
    return None


def brought(root: Path) -> Iterator[Journal]:
    """Iterate over the unused journals in a folder brought from elsewhere, the oldest first; nothing is written."""
    for folder in _folders(root):
        with _unused(_lock(folder)) as unused:
            if unused:
                yield Journal(folder)


@contextmanager
def _unused(lock: Path) -> Iterator[bool]:
    """Return whether no process holds a lock, and keep other processes from taking it inside the block.

    A folder that was copied may lack the file of the lock; then it is unused.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            unused = True
        except OSError as error:
            unused = error.errno != errno.EWOULDBLOCK
        yield unused
    finally:
        os.close(descriptor)


def _without_link(path: Path) -> Path:
    """Return `path`; raise StorageError if one of its parts is a link."""
    if os.path.realpath(path) != str(path):
        raise StorageError(f"{path}: a link leads to it, expected: a file or folder of the journal itself")
    return path


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _folders(root: Path) -> list[Path]:
    return sorted(_journals(root).glob("*/"))


def _journals(root: Path) -> Path:
    """Return the folder of journals. It, .work and the workspace may be links that the user made; a journal may not."""
    return Path(os.path.realpath(root / ".work" / "journals"))
