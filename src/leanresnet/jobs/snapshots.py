"""Snapshots of the state of a training on disk, and when they are saved.

Each has a checksum that detects damage, and the newest are kept.
"""

import hashlib
import io
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from signal import Signals
from typing import Any

import torch

from leanresnet.compute.device import describe
from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext
from leanresnet.errors import SnapshotError, StoppedError, StorageError, warn
from leanresnet.files import save_bytes
from leanresnet.training.state import TrainState

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


class SnapshotCallback:
    """A callback that saves the state of a training every `seconds`, and saves and stops it when a signal asks for it.

    If a periodic snapshot cannot be saved, a warning is printed and the training continues. In several processes, all
    stop after the same step when one of them gets a signal, and only the first one saves.

    Args:
        snapshots: where to save; None in all processes but the first.
        seconds: time between two snapshots.
        requested: returns the signal that asks the process to stop, or None.
        world: the processes of the training.
    """

    def __init__(
        self,
        snapshots: Snapshots | None,
        seconds: float,
        requested: Callable[[], Signals | None],
        world: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        self._snapshots = snapshots
        self._seconds = seconds
        self._requested = requested
        self._world = world
        self._saved_at = time.monotonic()
        self._saved: tuple[int, int] | None = None
        self._latest: TrainState | None = None

    def __call__(self, train_state: TrainState) -> None:
        self._latest = train_state
        signal = self._world.any_rank_signal(self._requested())
        if signal is not None:
            self._save(train_state)
            place = f"epoch {train_state.epoch}, step {train_state.step}"
            raise StoppedError(f"stopped by {signal.name} after {place}; the same command resumes from there", signal)
        if time.monotonic() - self._saved_at >= self._seconds:
            self.save(train_state)
            self._saved_at = time.monotonic()

    def save_latest(self) -> None:
        """Save the state after the last step, if there was one; call this only between two steps."""
        if self._latest is not None:
            self.save(self._latest)

    def save(self, train_state: TrainState) -> None:
        """Save the state; if it cannot be written, print a warning."""
        try:
            self._save(train_state)
        except StorageError as error:
            warn(f"not saved, training continues: {error}")

    def _save(self, train_state: TrainState) -> None:
        # The callback runs after each batch of validation too, between which the state does not change.
        if self._snapshots is not None and self._saved != (train_state.epoch, train_state.step):
            fingerprint = _fingerprint(train_state.device, self._world)
            self._snapshots.save({"progress": train_state.state_dict(), "fingerprint": fingerprint})
            self._saved = (train_state.epoch, train_state.step)


def load_state(
    snapshots: Snapshots, device: torch.device, world: DistributedContext = SINGLE_PROCESS
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the state to resume from, and how the environment that saved it differs from this one.

    Each is None if there is no state, or no difference.

    Raises:
        SnapshotError: if there are snapshots and all of them are damaged.
    """
    kept = snapshots.load()
    if kept is None:
        return None, None
    here, there = _fingerprint(device, world), kept["fingerprint"]
    changed = [f"{name}: {there.get(name)}, now {value}" for name, value in here.items() if there.get(name) != value]
    return kept["progress"], "; ".join(changed) or None


def _fingerprint(device: torch.device, world: DistributedContext) -> dict[str, Any]:
    """Return what the bytes of a result may depend on, besides code, values and data."""
    return {
        "torch": str(torch.__version__),
        "device": describe(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processes": world.size,
    }
