"""Snapshots of the state of a training on disk. Each has a checksum that detects damage, and the newest are kept."""

import hashlib
import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from leanresnet.errors import SnapshotError, warn
from leanresnet.files import save_bytes

# Number of snapshots that are kept.
KEPT = 3


class Snapshots:
    """The snapshots in a folder, in files `<number>-<SHA-256 of the content>.pt`; the highest number is the newest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self) -> list[Path]:
        """Return the files, the oldest first."""
        return sorted(self.folder.glob("*.pt"))

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a state, then remove all but the newest `KEPT` snapshots.

        Args:
            state: tensors, numbers, text and containers of them.

        Raises:
            StorageError: if the state cannot be written; the earlier snapshots are unchanged.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getvalue()
        # Remove the partial files of a process that died during a write. Only one process at a time uses the folder.
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
        """Return the newest undamaged state, or None if none was saved. A warning names the damaged snapshots.

        Raises:
            SnapshotError: if there are snapshots and all of them are damaged.
        """
        damaged: list[Path] = []
        for path in reversed(self.paths()):
            state = _read(path)
            if state is not None:
                if damaged:
                    names = ", ".join(each.name for each in damaged)
                    warn(f"{self.folder}: these snapshots are damaged, so an earlier one is used: {names}")
                return state
            damaged.append(path)
        if damaged:
            raise SnapshotError(
                f"{self.folder}: all {len(damaged)} snapshots of this training are damaged, "
                "expected: none (remove the folder to train from the start)"
            )
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """Return the state in a file, or None if the file cannot be read or does not match its checksum."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != path.stem.partition("-")[2]:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state
