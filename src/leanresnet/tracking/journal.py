"""What a run reports, kept on disk until MLflow has it.

In the workspace, .work/journals/<id>/ holds events.jsonl, one event a line, and the files that the
run logs. A journal whose process lives is locked.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from leanresnet.errors import StorageError
from leanresnet.files import no_link, not_written, workspace
from leanresnet.tracking.events import JOURNAL_ID, Begin, Event, read_event

# A training of a thousand epochs that was resumed a hundred times writes a quarter of it.
MOST_BYTES = 1 << 28


class Journal:
    """The events of one run, in order, those of earlier processes first, and the files that they name.

    It is only read. The folder may come from another machine, so nothing that it holds leads out of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = folder / "events.jsonl"

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def begin(self) -> Begin:
        """The first event of a journal that has one."""
        first = self.events[0]
        assert isinstance(first, Begin)
        return first

    @cached_property
    def events(self) -> list[Event]:
        """Without the part of a line that a process left which died in the middle of it.

        Raises:
            StorageError: the file holds something else.
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
        """A file of the journal's folder, by plain names.

        Raises:
            StorageError: it is not there, is no regular file, or a link leads to it.
        """
        path = _without_link(self.folder.joinpath(*names))
        if not path.is_file():
            raise StorageError(f"{path}: not there or no file, expected: a file of the journal")
        return path


class OwnJournal(Journal):
    """A journal of this workspace, locked: its run writes it, and it is removed when MLflow has all of it."""

    @cached_property
    def _end(self) -> int:
        """Where the next line goes, in bytes."""
        return len(self._whole_lines)

    def append(self, event: Event) -> None:
        """Raises StorageError when it cannot be written."""
        events, line = self.events, f"{event.model_dump_json()}\n".encode()
        try:
            with open(self._lines, "ab", opener=no_link) as file:
                # A full disk takes a part of a line, and a process may die in the middle of one.
                file.truncate(self._end)
                file.write(line)
        except OSError as error:
            raise not_written(self._lines, error, len(line)) from error
        self._end += len(line)
        events.append(event)

    def keep(self, path: Path, folder: str) -> None:
        """A file as it is now, as `file("files", folder, <its name>)`."""
        target = self.folder / "files" / folder / path.name
        try:
            _without_link(target.parent).mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            # Files of a stage are replaced and never changed, so a second name for one will do. DVC may
            # have put a link to its cache there; the second name is for what that leads to.
            try:
                os.link(os.path.realpath(path), target)
            except OSError:
                shutil.copy(path, target)
        except OSError as error:
            raise not_written(target, error) from error

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        _lock(self.folder).unlink(missing_ok=True)


def new_id() -> str:
    """It sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


def check_id(text: str, place: Path) -> str:
    """Raises StorageError unless the text, which was found in `place`, is what `new_id` gives."""
    if not re.fullmatch(JOURNAL_ID, text):
        raise StorageError(f"{place}: {text[:60]!r}, expected: the id of a journal, such as {new_id()}")
    return text


@contextmanager
def open_journal(journal_id: str) -> Iterator[OwnJournal]:
    """The journal of this id; a new one if it is not there, or no longer."""
    journals = _journals(workspace())
    folder = journals / check_id(journal_id, journals)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock(folder)).acquire()
    except OSError as error:
        raise not_written(error.filename or folder, error) from error
    with lock:
        # Whoever handed the journal on in the meantime has removed it.
        folder.mkdir(exist_ok=True)
        yield OwnJournal(folder)


def left_behind() -> Iterator[OwnJournal]:
    """The workspace's journals on which no process works, the oldest first; each is locked while it is out.

    Raises:
        StorageError: the workspace cannot be written.
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


def brought(root: Path) -> Iterator[Journal]:
    """Those in a folder that was brought from elsewhere, likewise; nothing is written there."""
    for folder in _folders(root):
        with _unused(_lock(folder)) as unused:
            if unused:
                yield Journal(folder)


@contextmanager
def _unused(lock: Path) -> Iterator[bool]:
    """Whether no process holds the lock, whose file a copy may lack; none takes it inside the block."""
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
    """Raises StorageError where a link leads to it."""
    if os.path.realpath(path) != str(path):
        raise StorageError(f"{path}: a link leads to it, expected: a file or folder of the journal itself")
    return path


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _folders(root: Path) -> list[Path]:
    return sorted(_journals(root).glob("*/"))


def _journals(root: Path) -> Path:
    """A workspace, its .work or its journals may lie elsewhere, by the user's own link; a journal may not."""
    return Path(os.path.realpath(root / ".work" / "journals"))
