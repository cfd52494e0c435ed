"""A run as training sees it: what it reports is written to a journal, and a thread hands it on to MLflow.

Tracking never costs a training: a server that refuses, hangs or dies holds up the thread alone.
What MLflow did not get stays in the journal, and `leanresnet sync` hands it on later.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from leanresnet.errors import StoppedError, redacted, warn
from leanresnet.files import workspace
from leanresnet.tracking import mlflow_client as tracking
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

# How long the end of a run waits for MLflow, and that of one that was asked to stop.
LAST_SECONDS, STOP_SECONDS = 30.0, 2.0
# The longest pause between two attempts.
PAUSE_SECONDS = 30.0


class Run:
    """One run; its methods return at once.

    Attributes:
        id: of its journal; the MLflow run has it as a tag.
    """

    def __init__(self, journal: OwnJournal) -> None:
        self.id = journal.id
        self._journal = journal
        self._sender = _Sender(journal)
        self._only_if_new = False

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._report(Metrics(values=dict(metrics), step=step))

    def log_history(self, rows: list[dict[str, float]]) -> None:
        """Rows of epochs 1, 2, ... of a training that ended before."""
        for epoch, row in enumerate(rows, start=1):
            self.log_metrics(row, epoch)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._report(SetTags(tags=dict(tags)))

    def log_artifact(self, path: Path, folder: str) -> None:
        self._journal.keep(path, folder)
        self._report(Artifact(name=path.name, folder=folder))

    def log_dataset(self, name: str, digest: str, context: str) -> None:
        """Name the data the run used; `digest` is the DVC md5 of the split's file."""
        self._report(Dataset(name=name, digest=digest, context=context))

    def log_parent(self, run_id: str) -> None:
        """Show this run below the one of this id."""
        self._report(Parent(journal=run_id))

    def log_model(self, folder: str) -> None:
        """The model whose two files were logged as artifacts of `folder`, in MLflow's own format."""
        self._report(LoggedModel(folder=folder))

    def log_note(self, text: str, teacher: Weights | None) -> None:
        """The run's description, with a link to the run of its teacher, (name, SHA-256 of its weights)."""
        self._report(Note(text=text, teacher=teacher))

    @contextmanager
    def only_if_new(self) -> Iterator[None]:
        """What is reported inside counts only where MLflow has no run of this model yet."""
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
        """Wait for MLflow, but not for longer than `seconds`, or `LAST_SECONDS`."""
        if self._sender.close(LAST_SECONDS if seconds is None else seconds):
            self._journal.discard()

    def kill(self) -> None:
        """End and close it where the process is about to end."""
        self.end("KILLED")
        self.close(STOP_SECONDS)

    def _report(self, event: Event) -> None:
        self._journal.append(event.model_copy(update={"only_if_new": self._only_if_new}))
        self._sender.wake()


@contextmanager
def start_run(
    name: str, params: Mapping[str, Scalar], tags: Mapping[str, str], run_id: str | None = None
) -> Iterator[Run]:
    """A new run; or that of `run_id`, which goes on if it was begun.

    An exception inside the block marks it FAILED, or KILLED where it was asked to stop.
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
    """The run that made `weights`, (model, SHA-256); a new one where MLflow has none (see `Run.only_if_new`)."""
    with open_journal(new_id()) as journal:
        run = Run(journal)
        run.begin(name, params, tags, weights)
        try:
            yield run
        finally:
            run.close()


def sync(root: Path) -> tuple[int, int]:
    """Hand the journals of a workspace on to MLflow; those that arrived are removed.

    Those of any other folder are read and stay as they are, and an evaluation among them adds to no run but
    that of a training among them. A training that died without a word becomes KILLED.

    Returns:
        how many arrived, and how many did not.
    """
    arrived, left = 0, 0
    among = None if root.resolve() == workspace() else set[str]()
    journals: Iterator[Journal] = left_behind() if among is None else brought(root)
    for journal in journals:
        try:
            # An evaluation adds to a run that may be in a journal which did not arrive.
            if left and _adds(journal):
                left += 1
                continue
            if journal.events:
                deliver = tracking.MlflowWriter(journal, among)
                for event in [*journal.events, *_unsaid(journal)]:
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
    """Whether it is of an evaluation, which adds to a training's run."""
    return bool(journal.events) and journal.begin.weights is not None


def _unsaid(journal: Journal) -> list[Event]:
    """The end of a training whose process died without a word."""
    if not journal.events or _adds(journal) or isinstance(journal.events[-1], End):
        return []
    return [End(status="KILLED", time=journal.events[-1].time)]


class _Sender:
    """A thread that hands a journal's events on as they come, and tries again after a pause where it cannot."""

    def __init__(self, journal: OwnJournal) -> None:
        self._journal = journal
        self._sent = 0
        self._closing = False
        self._failed = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        if not self._failed:
            self._wake.set()

    def close(self, seconds: float) -> bool:
        """Whether everything arrived."""
        self._closing = True
        self._wake.set()
        self._thread.join(seconds)
        arrived = self._sent == len(self._journal.events)
        if not arrived and not self._failed:
            _warn("it does not answer", self._journal)
        return arrived

    def _work(self) -> None:
        delivery, pause, again = None, 1.0, False
        while True:
            self._wake.wait(pause if self._failed else None)
            self._wake.clear()
            closing = self._closing
            try:
                if delivery is None:
                    self._see_to_others()
                    delivery = tracking.MlflowWriter(self._journal)
                    self._sent = 0
                while self._sent < len(self._journal.events):
                    delivery(self._journal.events[self._sent])
                    self._sent += 1
                self._failed, pause, again = False, 1.0, False
                if closing:
                    sync(workspace())
            except Exception as error:  # servers, disks and exporters fail in many ways; none may cost a training
                delivery, lost_it = None, delivery is not None and not again
                if lost_it:
                    # It went well before: at once, with a new connection, but once.
                    again = True
                    self._wake.set()
                    continue
                if not self._failed:
                    _warn(error, self._journal)
                self._failed, pause = True, min(2 * pause, PAUSE_SECONDS)
            if closing:
                return

    def _see_to_others(self) -> None:
        """What was left behind goes before an evaluation, and after a training but for runs that died.

        To log a model takes torch's random state for a moment, of which a training draws.
        """
        if _adds(self._journal):
            sync(workspace())
            return
        for other in left_behind():
            try:
                for end in _unsaid(other):
                    deliver = tracking.MlflowWriter(other)
                    deliver(other.begin)
                    deliver(end)
            except Exception as error:  # as in _work
                _warn(error, other)


def _warn(reason: object, journal: Journal) -> None:
    missing = f"MLflow has not got all of this run ({redacted(reason)[:200]})"
    warn(f"{missing}; {journal.folder} keeps it for `leanresnet sync`")
