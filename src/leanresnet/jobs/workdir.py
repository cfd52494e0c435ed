"""What a training keeps, so that one that was stopped goes on where it was, and a finished one can be extended.

In the workspace, .work/training/<values>-<code>-<epochs>/ holds snapshots and the id of the run's journal. The two
digests are of all else that determines the result; nothing in the folder is a stage's output.
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

import leanresnet
from leanresnet.compute.device import describe
from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext
from leanresnet.errors import StoppedError, StorageError, warn
from leanresnet.files import not_written, save_text, workspace
from leanresnet.jobs.snapshots import Snapshots
from leanresnet.tracking.journal import check_id
from leanresnet.training.state import TrainState

# What determines the weights, as the stages that train have it in dvc.yaml; a test compares the two.
CODE = ("compute", "config", "data/splits.py", "files.py", "models", "training")
# One that waits for another looks so often whether it is asked to stop.
WAIT_SECONDS = 2.0
# The newest trainings whose states stay: those that finished, and those that stopped, or go on beside this one.
FINISHED_KEPT, STOPPED_KEPT = 5, 50


class TrainingWorkdir:
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

    def extend(self, parent: "TrainingWorkdir") -> None:
        save_text(str(parent.epochs), self._extended)

    def parent(self, epochs: int | None = None) -> "TrainingWorkdir | None":
        """The finished training of the same but its fewer epochs; the longest, or that of `epochs`."""
        key = self._folder.name.rpartition("-")[0]
        found = [TrainingWorkdir(folder) for folder in self._folder.parent.glob(f"{key}-*/")]
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
def open_workdir(
    provenance: Mapping[str, Any], requested: Callable[[], Signals | None] = lambda: None
) -> Iterator[TrainingWorkdir]:
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
    params = {name: value for name, value in provenance["params"].items() if name != "epochs"}
    key = hashlib.sha256(json.dumps({**provenance, "params": params}, sort_keys=True).encode()).hexdigest()[:32]
    code, epochs = _code_digest(), provenance["params"]["epochs"]
    name = f"{key}-{code}-{epochs}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = _acquire(FileLock(root / f"{name}.lock"), requested)
    except OSError as error:
        raise not_written(error.filename or root, error) from error
    with lock:
        work = TrainingWorkdir(root / name)
        if work.is_recorded():
            work.discard()
        _name_passed_over(work, root, key, epochs)
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
    works = [TrainingWorkdir(folder) for folder in sorted(root.glob("*/"), key=_changed)]
    finished = [each for each in works if each.is_finished()]
    stopped = [each for each in works if not each.is_finished()]
    for old in [*finished[:-FINISHED_KEPT], *stopped[:-STOPPED_KEPT]]:
        old.discard()


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another training's _tidy was here
        return 0.0


class SnapshotCallback:
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
        """Between two steps: the state after the last one, if one was made."""
        if self._latest is not None:
            self.save(self._latest)

    def save(self, train_state: TrainState) -> None:
        """Now, if it can be."""
        try:
            self._save(train_state)
        except StorageError as error:
            warn(f"not saved, training continues: {error}")

    def _save(self, train_state: TrainState) -> None:
        # The batches of validation come between one place and the next.
        if self._snapshots is not None and self._saved != (train_state.epoch, train_state.step):
            fingerprint = _fingerprint(train_state.device, self._world)
            self._snapshots.save({"progress": train_state.state_dict(), "fingerprint": fingerprint})
            self._saved = (train_state.epoch, train_state.step)


def load_state(
    snapshots: Snapshots, device: torch.device, world: DistributedContext = SINGLE_PROCESS
) -> tuple[dict[str, Any] | None, str | None]:
    """The state to go on from, and in what this machine differs from the one that saved it; None: in nothing."""
    kept = snapshots.load()
    if kept is None:
        return None, None
    here, there = _fingerprint(device, world), kept["fingerprint"]
    changed = [f"{name}: {there.get(name)}, now {value}" for name, value in here.items() if there.get(name) != value]
    return kept["progress"], "; ".join(changed) or None


def _fingerprint(device: torch.device, world: DistributedContext) -> dict[str, Any]:
    """What the bytes of a result may depend on beside code, values and data."""
    return {
        "torch": str(torch.__version__),
        "device": describe(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processes": world.size,
    }


def _name_passed_over(work: TrainingWorkdir, root: Path, key: str, epochs: int) -> None:
    """One line for the trainings of the same values that other code began, and this code does not resume."""
    kept = map(TrainingWorkdir, sorted(root.glob(f"{key}-*-{epochs}/")))
    others = [each for each in kept if each.snapshots.paths() and not each.is_finished()]
    if others and not work.snapshots.paths():
        warn(f"{others[0].snapshots.folder}: made by other code than today's, so this training begins at the start")


def _code_digest() -> str:
    """Of the code that determines the weights; 16 hexadecimal digits."""
    digest, package = hashlib.sha256(), Path(leanresnet.__file__).parent
    for place in CODE:
        for path in sorted([package / place] if place.endswith(".py") else (package / place).rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
