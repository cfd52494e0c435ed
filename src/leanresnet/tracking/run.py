"""The interface by which a training reports to MLflow: a run writes events to a journal, and a thread sends them.

A failure of the server never stops or delays a training, because only the thread waits for the server. Events that
MLflow did not receive stay in the journal, and `leanresnet sync` sends them later.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from leanresnet.errors import StoppedError, redacted, warn
from leanresnet.files import workspace
from leanresnet.tracking import mlflow_client as tracking
from leanresnet.tracking.connection import set_environment
from leanresnet.tracking.events import (
    Artifact,
    Begin,
    Dataset,
    End,
    Event,
    LoggedModel,
    Metrics,
    Note,
    Parent,
    Scalar,
    SetTags,
    Status,
    Weights,
)
from leanresnet.tracking.journal import Journal, OwnJournal, brought, left_behind, new_id, open_journal

# How long a run waits for MLflow at its end, and at its end by a signal.
LAST_SECONDS, STOP_SECONDS = 30.0, 2.0
# The longest pause between two attempts to send events.
PAUSE_SECONDS = 30.0


class Run:
    """One run. Its methods do not wait for MLflow, except for `close` and `kill`.

    Attributes:
        id: id of its journal, which the MLflow run has as a tag.
    """

    def __init__(self, journal: OwnJournal) -> None:
        self.id = journal.id
        self._journal = journal
        self._sender = _Sender(journal)
        self._only_if_new = False

    @property
    def address(self) -> str | None:
        """The address of the run on MLflow's page, or None if MLflow has not received all of it."""
        return self._sender.address if self._sender.has_arrived else None

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, dataset: tuple[str, str] | None = None) -> None:
        """Log metrics of an epoch, or values that the run has once, at step 0, of which MLflow draws bars.

        With `dataset`, (name, digest), they are also values of the run's model on this data.
        """
        self._report(Metrics(values=dict(metrics), step=step, dataset=dataset))

    def log_history(self, rows: list[dict[str, float]]) -> None:
        """Log the metrics of epochs 1, 2, ..., one row each."""
        for epoch, row in enumerate(rows, start=1):
            self.log_metrics(row, epoch)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._report(SetTags(tags=dict(tags)))

    def log_artifact(self, path: Path, folder: str) -> None:
        self._journal.keep(path, folder)
        self._report(Artifact(name=path.name, folder=folder))

    def log_dataset(self, name: str, digest: str, context: str, classes: Mapping[str, int] | None) -> None:
        """Log the data that the run used.

        Args:
            digest: DVC's md5 of the split's file.
            context: its use.
            classes: number of images of each class; None if it is not known.
        """
        counts = None if classes is None else dict(classes)
        self._report(Dataset(name=name, digest=digest, context=context, classes=counts))

    def log_parent(self, run_id: str) -> None:
        """Make this run a child of the run whose journal has the id `run_id`."""
        self._report(Parent(journal=run_id))

    def log_model(self, folder: str) -> None:
        """Log the model, whose two files were logged as artifacts in `folder`, in MLflow's own format."""
        self._report(LoggedModel(folder=folder))

    def log_note(self, text: str, teacher: Weights | None) -> None:
        """Set the run's description, with a link to the run of its teacher, (name, SHA-256 of the weights) or None."""
        self._report(Note(text=text, teacher=teacher))

    @contextmanager
    def only_if_new(self) -> Iterator[None]:
        """Log the reports inside the block only if MLflow has no run of this model yet."""
        self._only_if_new = True
        try:
            yield
        finally:
            self._only_if_new = False

    def end(self, status: Status) -> None:
        self._report(End(status=status))

    def begin(
        self, name: str, params: Mapping[str, Scalar], tags: Mapping[str, str], weights: Weights | None = None
    ) -> None:
        tags = {**tracking.code_version(), **tags}
        self._report(Begin(name=name, params=dict(params), tags=tags, weights=weights))

    def close(self, seconds: float | None = None) -> None:
        """Wait until MLflow has received everything, but at most `seconds`, by default `LAST_SECONDS`."""
        if self._sender.close(LAST_SECONDS if seconds is None else seconds):
            self._journal.discard()

    def kill(self) -> None:
        """End the run as KILLED and close it; for a process that is about to be ended by a signal."""
        self.end("KILLED")
        self.close(STOP_SECONDS)

    def _report(self, event: Event) -> None:
        self._journal.append(event.model_copy(update={"only_if_new": self._only_if_new}))
        self._sender.wake()


@contextmanager
def start_run(
    name: str, params: Mapping[str, Scalar], tags: Mapping[str, str], run_id: str | None = None
) -> Iterator[Run]:
    """Start a run, or resume the one whose journal has the id `run_id`.

    The run ends as FINISHED, as KILLED after StoppedError or KeyboardInterrupt, and as FAILED after another exception.
    """
    with open_journal(run_id or new_id()) as journal:
        run = Run(journal)
        run.begin(name, params, tags)
        status: Status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, StoppedError):
            status = "KILLED"
            raise
        finally:
            run.end(status)
            run.close(STOP_SECONDS if status == "KILLED" else LAST_SECONDS)


@contextmanager
def add_to_run(name: str, params: Mapping[str, Scalar], tags: Mapping[str, str], weights: Weights) -> Iterator[Run]:
    """Add to the run that made `weights`, (name of the model, SHA-256).

    If MLflow has no such run, a new one is created, see `Run.only_if_new`.
    """
    with open_journal(new_id()) as journal:
        run = Run(journal)
        run.begin(name, params, tags, weights)
        try:
            yield run
        finally:
            run.close()


def sync(root: Path) -> tuple[int, int]:
    """Send the journals of a folder to MLflow.

    The journals of the current workspace are removed after they were received. Those of any other folder are only
    read, and an evaluation among them adds only to the run of a training among them. A training whose process died
    without an end event becomes KILLED.

    Args:
        root: the workspace, or a folder that was brought from elsewhere.

    Returns:
        Numbers of journals that MLflow received, and that it did not receive.
    """
    arrived, left = 0, 0
    among = None if root.resolve() == workspace() else set[str]()
    journals: Iterator[Journal] = left_behind() if among is None else brought(root)
    for journal in journals:
        try:
            # An evaluation may add to the run of a journal that was not received.
            if left and _adds(journal):
                left += 1
                continue
            if journal.events:
                deliver = tracking.MlflowWriter(journal, among)
                for event in [*journal.events, *_missing_end(journal)]:
                    deliver(event)
            if among is not None:
                among.add(journal.id)
            if isinstance(journal, OwnJournal):
                journal.discard()
            arrived += 1
        except Exception as error:  # as in _Sender
            _warn(error, journal)
            left += 1
    return arrived, left


def _adds(journal: Journal) -> bool:
    """Return whether the journal is that of an evaluation, which adds to the run of a training."""
    return bool(journal.events) and journal.begin.weights is not None


def _missing_end(journal: Journal) -> list[Event]:
    """Return an end event if the process of a training died before it wrote one."""
    if not journal.events or _adds(journal) or isinstance(journal.events[-1], End):
        return []
    return [End(status="KILLED", time=journal.events[-1].time)]


class _Sender:
    """A thread that sends the events of a journal to MLflow as they come; after a failure it pauses and retries."""

    def __init__(self, journal: OwnJournal) -> None:
        self._journal = journal
        self.address: str | None = None
        self._sent = 0
        self._closing = False
        self._failed = False
        self._wake = threading.Event()
        set_environment()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        if not self._failed:
            self._wake.set()

    def close(self, seconds: float) -> bool:
        """Send the last events, wait at most `seconds`, and return whether MLflow has received everything."""
        self._closing = True
        self._wake.set()
        self._thread.join(seconds)
        if not self.has_arrived and not self._failed:
            _warn("it does not answer", self._journal)
        return self.has_arrived

    @property
    def has_arrived(self) -> bool:
        """Whether MLflow has received all events so far."""
        return self._sent == len(self._journal.events)

    def _work(self) -> None:
        delivery, pause, again = None, 1.0, False
        while True:
            self._wake.wait(pause if self._failed else None)
            self._wake.clear()
            closing = self._closing
            try:
                if delivery is None:
                    # Other journals must be sent before an evaluation. That may log models, for which torch adds an
                    # environment variable, so it happens when the evaluation only waits.
                    if _adds(self._journal) and not closing:
                        continue
                    self._send_others()
                    delivery = tracking.MlflowWriter(self._journal)
                    self.address, self._sent = delivery.address, 0
                while self._sent < len(self._journal.events):
                    delivery(self._journal.events[self._sent])
                    self._sent += 1
                self._failed, pause, again = False, 1.0, False
                if closing:
                    sync(workspace())
            except Exception as error:  # servers, disks and exporters fail in many ways; none may stop a training
                delivery, lost_it = None, delivery is not None and not again
                if lost_it:
                    # The connection worked before, so the first retry uses a new one at once.
                    again = True
                    self._wake.set()
                    continue
                if not self._failed:
                    _warn(error, self._journal)
                self._failed, pause = True, min(2 * pause, PAUSE_SECONDS)
            if closing:
                return

    def _send_others(self) -> None:
        """Send journals that earlier processes left: all before an evaluation, before a training only missing ends.

        The rest is sent at the end of the training, because logging a model changes torch's random state for a moment,
        and the training draws from it.
        """
        if _adds(self._journal):
            sync(workspace())
            return
        for other in left_behind():
            try:
                for end in _missing_end(other):
                    deliver = tracking.MlflowWriter(other)
                    deliver(other.begin)
                    deliver(end)
            except Exception as error:  # as in _work
                _warn(error, other)


def _warn(reason: object, journal: Journal) -> None:
    missing = f"MLflow has not received all of this run ({redacted(reason)[:200]})"
    warn(f"{missing}; {journal.folder} keeps it for `leanresnet sync`")
