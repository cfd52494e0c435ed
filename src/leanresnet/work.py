"""What a training keeps, so that one that was stopped goes on where it was, and a finished one can be extended.

In the workspace, .work/training/<key>-<epochs>/ holds snapshots and the id of the run's journal. The
key is a digest of all else that determines the result; nothing in the folder is a stage's output.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from filelock import FileLock, Timeout

from leanresnet.device import describe
from leanresnet.distributed import ALONE, World
from leanresnet.errors import StoppedError, StorageError, warn
from leanresnet.files import not_written, save_text, workspace
from leanresnet.journal import check_id
from leanresnet.progress import Progress
from leanresnet.snapshots import Snapshots

# One that waits for another looks so often whether it is asked to stop.
WAIT_SECONDS = 2.0
# The newest trainings whose states stay: those that finished, and those that stopped, or go on beside this one.
FINISHED_KEPT, STOPPED_KEPT = 5, 50


class Work:
    """The folder of one training, held by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.snapshots = Snapshots(folder)
        self._run, self._finished, self._extended = (folder / name for name in ("run_id", "finished", "extended_from"))

    @property
    def epochs(self) -> int:
        return int(self._folder.name.rpartition("-")[2])

    @property
    def run_id(self) -> str | None:
        """Of the run's journal, if one was begun."""
        text = _read(self._run)
        return None if text is None else check_id(text, self._run)

    def keep_run_id(self, run_id: str) -> None:
        save_text(run_id, self._run)

    @property
    def extended_from(self) -> int | None:
        """Epochs of the finished training that this one goes on from, or None: it began at the start."""
        text = _read(self._extended)
        return None if text is None else int(text)

    def extend(self, parent: "Work") -> None:
        save_text(str(parent.epochs), self._extended)

    def parent(self, epochs: int | None = None) -> "Work | None":
        """The finished training of the same but its fewer epochs; the longest, or that of `epochs`."""
        key = self._folder.name.rpartition("-")[0]
        found = [Work(folder) for folder in self._folder.parent.glob(f"{key}-*/")]
        shorter = [each for each in found if each.is_finished() and each.epochs < self.epochs]
        return max(
            (each for each in shorter if epochs in (None, each.epochs)), key=lambda each: each.epochs, default=None
        )

    def finish(self, weights_md5: str) -> None:
        """To be called when all outputs are written.

        A dvc that is killed before it has recorded them removes them and runs the stage again, which then
        only has to write them.
        """
        save_text(weights_md5 if "DVC_STAGE" in os.environ else "", self._finished)

    def is_finished(self) -> bool:
        return self._finished.exists()

    def is_recorded(self) -> bool:
        """Whether the outputs of this training are safe, so that running it again means to train again."""
        md5 = _read(self._finished)
        # Empty: not under DVC, so nobody has to record them.
        return md5 == "" or (md5 is not None and md5 in (_read(Path("dvc.lock")) or ""))

    def discard(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


@contextmanager
def work_on(made_by: Mapping[str, Any], requested: Callable[[], Signals | None] = lambda: None) -> Iterator[Work]:
    """The work of the training that `made_by` and this code determine; of the finished ones, the oldest go.

    A process that trains the same is waited for: experiments that DVC's queue runs at once may need one
    teacher. Once it has finished, under DVC, there is nothing left to train.

    Args:
        requested: the signal that asks to stop, or None.

    Raises:
        StoppedError: while it waited.
        StorageError: the workspace cannot be written.
    """
    root = workspace() / ".work" / "training"
    params = {name: value for name, value in made_by["params"].items() if name != "epochs"}
    determined = [{**made_by, "params": params}, _code_digest()]
    key = hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()[:32]
    name = f"{key}-{made_by['params']['epochs']}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = _acquire(FileLock(root / f"{name}.lock"), requested)
    except OSError as error:
        raise not_written(error.filename or root, error) from error
    with lock:
        work = Work(root / name)
        if work.is_recorded():
            work.discard()
        yield work
        _tidy(root)


def _acquire(lock: FileLock, requested: Callable[[], Signals | None]) -> AbstractContextManager[object]:
    """The lock held, to be released by `with`."""
    waits = False
    while True:
        try:
            return lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            signal = requested()
            if signal is not None:
                raise StoppedError(f"stopped by {signal.name} while another process trained the same", signal) from None
            if not waits:
                warn(f"{lock.lock_file}: another process trains this very model; waiting")
            waits = True


def _tidy(root: Path) -> None:
    """Remove all but the newest of the trainings that finished and of those that stopped."""
    works = [Work(folder) for folder in sorted(root.glob("*/"), key=_changed)]
    finished = [each for each in works if each.is_finished()]
    stopped = [each for each in works if not each.is_finished()]
    for old in [*finished[:-FINISHED_KEPT], *stopped[:-STOPPED_KEPT]]:
        old.discard()


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another training's _tidy was here
        return 0.0


class Keeper:
    """Saves a training's state every `seconds`, and when the training is asked to stop.

    A state that cannot be saved now and then costs a line and no training. Of several processes all
    stop where one is asked to, and the first one saves.

    Args:
        snapshots: where; None in the other processes.
        requested: the signal that asks to stop, or None.
    """

    def __init__(
        self,
        snapshots: Snapshots | None,
        seconds: float,
        requested: Callable[[], Signals | None],
        world: World = ALONE,
    ) -> None:
        self._snapshots = snapshots
        self._seconds = seconds
        self._requested = requested
        self._world = world
        self._saved_at = time.monotonic()
        self._saved: tuple[int, int] | None = None
        self._latest: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        self._latest = progress
        signal = self._world.agree(self._requested())
        if signal is not None:
            self._save(progress)
            place = f"epoch {progress.epoch}, step {progress.step}"
            raise StoppedError(f"stopped by {signal.name} after {place}; the same command goes on from there", signal)
        if time.monotonic() - self._saved_at >= self._seconds:
            self.save(progress)
            self._saved_at = time.monotonic()

    def save_latest(self) -> None:
        """Between two steps: the state after the last one, if one was made."""
        if self._latest is not None:
            self.save(self._latest)

    def save(self, progress: Progress) -> None:
        """Now, if it can be."""
        try:
            self._save(progress)
        except StorageError as error:
            warn(f"not saved, training goes on: {error}")

    def _save(self, progress: Progress) -> None:
        # The batches of validation come between one place and the next.
        if self._snapshots is not None and self._saved != (progress.epoch, progress.step):
            fingerprint = _fingerprint(progress.device, self._world)
            self._snapshots.save({"progress": progress.state_dict(), "fingerprint": fingerprint})
            self._saved = (progress.epoch, progress.step)


def load_state(
    snapshots: Snapshots, device: torch.device, world: World = ALONE
) -> tuple[dict[str, Any] | None, str | None]:
    """The state to go on from, and in what this machine differs from the one that saved it; None: in nothing."""
    kept = snapshots.load()
    if kept is None:
        return None, None
    here, there = _fingerprint(device, world), kept["fingerprint"]
    changed = [f"{name}: {there.get(name)}, now {value}" for name, value in here.items() if there.get(name) != value]
    return kept["progress"], "; ".join(changed) or None


def _fingerprint(device: torch.device, world: World) -> dict[str, Any]:
    """What the bytes of a result may depend on beside code, values and data."""
    return {
        "torch": str(torch.__version__),
        "device": describe(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processes": world.size,
    }


def _code_digest() -> str:
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()
