"""What a run reports, kept on disk until MLflow has it.

In the workspace, .work/journals/<id>/ holds events.jsonl, one event a line, and the files that the
run logs. A journal whose process lives is locked.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from leanresnet.errors import StorageError
from leanresnet.files import not_written, workspace

Event = dict[str, Any]


class Journal:
    """The events of one run, in order, those of earlier processes first; each has a `type` and a `time` in ms.

    Attributes:
        files: a folder for what the events name, as `<folder>/<name>`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self._lines = folder / "events.jsonl"

    @property
    def id(self) -> str:
        return self.folder.name

    def append(self, event: Event) -> None:
        """Raises StorageError when it cannot be written."""
        events, stamped = self.events, {**event, "time": time.time_ns() // 1_000_000}
        line = json.dumps(stamped) + "\n"
        before = self._lines.stat().st_size if self._lines.exists() else 0
        try:
            with self._lines.open("a") as file:
                file.write(line)
        except OSError as error:
            # A full disk takes a part of the line, and what comes next must not follow on that.
            with suppress(OSError):
                os.truncate(self._lines, before)
            raise not_written(self._lines, error, len(line)) from error
        events.append(stamped)

    def keep(self, path: Path, folder: str) -> None:
        """A file as it is now, as `<folder>/<its name>`."""
        target = self.files / folder / path.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            # Files of a stage are replaced and never changed, so a second name for one will do.
            try:
                os.link(path, target)
            except OSError:
                shutil.copy(path, target)
        except OSError as error:
            raise not_written(target, error) from error

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        _lock(self.folder).unlink(missing_ok=True)

    @cached_property
    def events(self) -> list[Event]:
        """Raises StorageError where the file holds something else."""
        if not self._lines.exists():
            return []
        content = self._lines.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            # A process that died in the middle of a line left the rest.
            os.truncate(self._lines, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise StorageError(f"{self._lines}: damaged ({error})") from error


def new_id() -> str:
    """It sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


@contextmanager
def open_journal(journal_id: str) -> Iterator[Journal]:
    """The journal of this id; a new one if it is not there, or no longer."""
    folder = _journals(workspace()) / journal_id
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock(folder)).acquire()
    except OSError as error:
        raise not_written(error.filename or folder, error) from error
    with lock:
        # Whoever handed the journal on in the meantime has removed it.
        folder.mkdir(exist_ok=True)
        yield Journal(folder)


def left_behind(root: Path) -> Iterator[Journal]:
    """The journals of a workspace on which no process works, the oldest first; each is locked while it is out.

    Raises:
        StorageError: the workspace cannot be written.
    """
    for folder in sorted(_journals(root).glob("*/")):
        try:
            with FileLock(_lock(folder), timeout=0):
                if folder.exists():
                    yield Journal(folder)
        except Timeout:
            continue
        except OSError as error:
            raise not_written(_lock(folder), error) from error


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _journals(root: Path) -> Path:
    return root / ".work" / "journals"
