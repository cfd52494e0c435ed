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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from leanresnet.errors import StorageError
from leanresnet.files import workspace

Event = dict[str, Any]


class Journal:
    """The events of one run, in order; those of earlier processes first.

    Attributes:
        events: what was reported; each has a `type` and a `time` in milliseconds.
        files: a folder for what the events name, as `<folder>/<name>`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self._lines = folder / "events.jsonl"
        self.events: list[Event] = self._read()

    @property
    def id(self) -> str:
        return self.folder.name

    def append(self, event: Event) -> None:
        """Raises StorageError when it cannot be written."""
        stamped = {**event, "time": time.time_ns() // 1_000_000}
        try:
            with self._lines.open("a") as file:
                file.write(json.dumps(stamped) + "\n")
        except OSError as error:
            raise StorageError(f"{self._lines}: cannot be written ({error.strerror})") from error
        self.events.append(stamped)

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
            raise StorageError(f"{target}: cannot be written ({error.strerror})") from error

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> list[Event]:
        if not self._lines.exists():
            return []
        text = self._lines.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            # A process that died in the middle of a line left the rest.
            self._lines.write_text(whole)
        return [json.loads(line) for line in whole.splitlines()]


def new_id() -> str:
    """It sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"


@contextmanager
def open_journal(journal_id: str) -> Iterator[Journal]:
    """The journal of this id; a new one if it is not there, or no longer."""
    folder = _journals(workspace()) / journal_id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror})") from error
    with FileLock(folder / "lock"):
        yield Journal(folder)


def left_behind(root: Path) -> Iterator[Journal]:
    """The journals of a workspace on which no process works, the oldest first; each is locked while it is out."""
    for folder in sorted(_journals(root).glob("*/")):
        try:
            with FileLock(folder / "lock", timeout=0):
                yield Journal(folder)
        except (Timeout, FileNotFoundError):
            continue


def _journals(root: Path) -> Path:
    return root / ".work" / "journals"
