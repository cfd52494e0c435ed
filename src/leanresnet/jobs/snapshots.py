"""States of a training under way, on disk: the last few, each whole or recognised as damaged."""

import hashlib
import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from leanresnet.errors import SnapshotError, warn
from leanresnet.files import save_bytes

KEPT = 3


class Snapshots:
    """Files `<number>-<SHA-256 of the content>.pt` in a folder; the highest number is the newest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self) -> list[Path]:
        """The oldest first."""
        return sorted(self.folder.glob("*.pt"))

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state of tensors, numbers, text and containers of them; then remove all but the newest `KEPT`.

        Raises:
            StorageError: it cannot be written; those before it are as they were.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getbuffer()
        # What a process left that died in the middle of this; there is one process a folder.
        for part in self.folder.glob(".*"):
            with suppress(OSError):
                part.unlink()
        before = self.paths()
        number = int(before[-1].stem.partition("-")[0]) + 1 if before else 1
        path = self.folder / f"{number:08d}-{hashlib.sha256(content).hexdigest()}.pt"
        save_bytes(content, path)
        for old in self.paths()[:-KEPT]:
            with suppress(OSError):
                old.unlink()

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole; None where none was saved. One line on stderr names those passed over.

        Raises:
            SnapshotError: there are some, and all are damaged.
        """
        damaged: list[Path] = []
        for path in reversed(self.paths()):
            state = _read(path)
            if state is not None:
                if damaged:
                    names = ", ".join(each.name for each in damaged)
                    warn(f"{self.folder}: damaged, so an earlier one is used: {names}")
                return state
            damaged.append(path)
        if damaged:
            raise SnapshotError(
                f"{self.folder}: all {len(damaged)} snapshots of this training are damaged, "
                "expected: none (remove the folder to train from the start)"
            )
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """None where the content is not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != path.stem.partition("-")[2]:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state
