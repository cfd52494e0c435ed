"""The working folder of a training, from which a stopped training is resumed and a finished one is extended.

It is .work/training/<values>-<code>-<epochs>/ in the workspace and holds the snapshots and the id of the run's journal.
<values> is a digest of the recipe without its epochs, of the data and of the teacher, and <code> one of the code that
determines the weights. No file in the folder is an output of a stage.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from signal import Signals
from typing import Any

from filelock import FileLock, Timeout

import leanresnet
from leanresnet.errors import StoppedError, warn
from leanresnet.files import not_written, save_text, workspace
from leanresnet.jobs.snapshots import Snapshots
from leanresnet.tracking.journal import check_id

# The code that determines the weights. A test compares it with the dependencies of the training stages in dvc.yaml.
CODE = ("compute", "config", "data/splits.py", "files.py", "models", "text.py", "training")
# A process that waits for another training checks at this interval whether it should stop.
WAIT_SECONDS = 2.0
# How many folders are kept, the newest ones: of finished trainings, and of trainings that were stopped or still run.
FINISHED_KEPT, STOPPED_KEPT = 5, 50


class TrainingWorkdir:
    """The working folder of one training, which one process at a time uses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.snapshots = Snapshots(folder)
        self._run, self._finished, self._extended = (folder / name for name in ("run_id", "finished", "extended_from"))

    @property
    def epochs(self) -> int:
        return int(self._folder.name.rpartition("-")[2])

    @property
    def run_id(self) -> str | None:
        """The id of the run's journal, or None if no run was begun.

        Raises:
            StorageError: if the file does not hold the id of a journal.
        """
        text = _read(self._run)
        return None if text is None else check_id(text, self._run)

    def keep_run_id(self, run_id: str) -> None:
        save_text(run_id, self._run)

    @property
    def extended_from(self) -> int | None:
        """The number of epochs of the finished training that this one extends, or None if it extends none."""
        text = _read(self._extended)
        return None if text is None else int(text)

    def extend(self, parent: "TrainingWorkdir") -> None:
        save_text(str(parent.epochs), self._extended)

    def parent(self, epochs: int | None = None) -> "TrainingWorkdir | None":
        """Return the finished training with the same values and code but fewer epochs, or None.

        Args:
            epochs: its number of epochs; None for the largest there is.
        """
        key = self._folder.name.rpartition("-")[0]
        found = [TrainingWorkdir(folder) for folder in self._folder.parent.glob(f"{key}-*/")]
        shorter = [each for each in found if each.is_finished() and each.epochs < self.epochs]
        return max(
            (each for each in shorter if epochs in (None, each.epochs)), key=lambda each: each.epochs, default=None
        )

    def finish(self, weights_md5: str) -> None:
        """Mark the training as finished; call this after all outputs are written.

        If dvc is killed before it has recorded the outputs, it removes them and runs the stage again, which then only
        writes them from the last snapshot.
        """
        save_text(weights_md5 if "DVC_STAGE" in os.environ else "", self._finished)

    def is_finished(self) -> bool:
        return self._finished.exists()

    def is_recorded(self) -> bool:
        """Return whether the training finished and its outputs are recorded, so that another run trains anew."""
        md5 = _read(self._finished)
        # An empty file means that the training did not run under DVC, which therefore does not record the outputs.
        return md5 == "" or (md5 is not None and md5 in (_read(Path("dvc.lock")) or ""))

    def discard(self) -> None:
        # Before `finished`: without it, a folder with a snapshot or the id of a run is that of a stopped training.
        for path in (*self.snapshots.paths(), self._extended, self._run):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


@contextmanager
def open_workdir(
    provenance: Mapping[str, Any], requested: Callable[[], Signals | None] = lambda: None
) -> Iterator[TrainingWorkdir]:
    """Lock and return the working folder of the training that `provenance` and the current code determine.

    On exit, the oldest folders of other trainings are removed. If another process trains the same model, this one waits
    for it: experiments that DVC's queue runs at the same time may need the same teacher. Under DVC, the other process's
    final state is then resumed, and there is nothing left to train.

    Args:
        provenance: see `describe_provenance`.
        requested: returns the signal that asks the process to stop, or None; it is called every two seconds while the
            process waits.

    Raises:
        StoppedError: if a signal arrives while the process waits.
        StorageError: if the workspace cannot be written.
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
        _warn_of_other_code(work, root, key, epochs)
        try:
            yield work
        finally:
            _tidy(root)


def _acquire(lock: FileLock, requested: Callable[[], Signals | None]) -> AbstractContextManager[object]:
    """Acquire the lock; the returned context releases it."""
    waits = False
    while True:
        try:
            return lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            signal = requested()
            if signal is not None:
                message = f"stopped by {signal.name} while another process trained the same model"
                raise StoppedError(message, signal) from None
            if not waits:
                warn(f"{lock.lock_file}: another process trains the same model; waiting for it")
            waits = True


def _tidy(root: Path) -> None:
    """Remove all but the newest folders of finished and of unfinished trainings, and the locks of those removed."""
    works = [TrainingWorkdir(folder) for folder in sorted(root.glob("*/"), key=_changed)]
    finished = [each for each in works if each.is_finished()]
    stopped = [each for each in works if not each.is_finished()]
    for old in [*finished[:-FINISHED_KEPT], *stopped[:-STOPPED_KEPT]]:
        old.discard()
    for path in root.glob("*.lock"):
        # A process that waits for a lock notices that its file was removed, and creates it anew.
        with suppress(Timeout), FileLock(path, timeout=0):
            if not path.with_suffix("").exists():
                path.unlink(missing_ok=True)


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # the _tidy of another training has removed it
        return 0.0


def _warn_of_other_code(work: TrainingWorkdir, root: Path, key: str, epochs: int) -> None:
    """Warn of an unfinished training with the same values that other code saved, and that is therefore not resumed."""
    kept = map(TrainingWorkdir, sorted(root.glob(f"{key}-*-{epochs}/")))
    others = [each for each in kept if each.snapshots.paths() and not each.is_finished()]
    if others and not work.snapshots.paths():
        warn(f"{others[0].snapshots.folder}: saved by other code than the current, so this training starts anew")


def _code_digest() -> str:
    """Return a digest of the code that determines the weights, 16 hexadecimal digits."""
    digest, package = hashlib.sha256(), Path(leanresnet.__file__).parent
    for place in CODE:
        for path in sorted([package / place] if place.endswith(".py") else (package / place).rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
