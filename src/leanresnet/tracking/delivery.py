"""The delivery of journals to MLflow: of the one that is being written, and of those that processes left behind.

A failure of the server never stops or delays a training, because only a thread waits for the server. Events that
MLflow did not receive stay in the journal, and `leanresnet sync` sends them later.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

from leanresnet.errors import cause, warn
from leanresnet.files import workspace
from leanresnet.tracking import mlflow_client as tracking
from leanresnet.tracking.connection import connect, set_environment, tracking_uri
from leanresnet.tracking.events import End, Event
from leanresnet.tracking.journal import Journal, OwnJournal, brought, left_behind

# The longest pause between two attempts to send events.
PAUSE_SECONDS = 30.0


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
    arrived, left, is_away = 0, 0, False
    among = None if root.resolve() == workspace() else set[str]()
    journals: Iterator[Journal] = left_behind() if among is None else brought(root)
    for journal in journals:
        try:
            # An evaluation may add to the run of a journal that was not received. In the workspace, `MlflowWriter`
            # itself refuses it then.
            if is_away or (left and journal.adds and among is not None):
                left += 1
                continue
            # If MLflow does not answer, the other journals are not tried, and only this one is named.
            is_away = True
            connect()
            is_away = False
            if journal.events:
                deliver = tracking.MlflowWriter(journal, among)
                for event in [*journal.events, *_missing_end(journal)]:
                    deliver(event)
            if among is not None:
                among.add(journal.id)
            if isinstance(journal, OwnJournal):
                journal.discard()
            arrived += 1
        except Exception as error:  # as in Sender
            _warn("a run", cause(error), journal)
            left += 1
    return arrived, left


def _missing_end(journal: Journal) -> list[Event]:
    """Return an end event if the process of a training died before it wrote one."""
    if not journal.events or journal.adds or isinstance(journal.events[-1], End):
        return []
    return [End(status="KILLED", time=journal.events[-1].time)]


class Sender:
    """A thread that sends the events of a journal to MLflow as they come; after a failure it pauses and retries."""

    def __init__(self, journal: OwnJournal) -> None:
        self._journal = journal
        self.address: str | None = None
        self._deliver: tracking.MlflowWriter | None = None
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
            _warn("this run", "it does not answer", self._journal)
        return self.has_arrived

    @property
    def has_arrived(self) -> bool:
        """Whether MLflow has received all events so far."""
        return self._sent == len(self._journal.events)

    def _work(self) -> None:
        pause, again = 1.0, False
        while True:
            self._wake.wait(pause if self._failed else None)
            self._wake.clear()
            closing = self._closing
            try:
                self._send(closing)
                self._failed, pause, again = False, 1.0, False
                if closing:
                    sync(workspace())
            except Exception as error:  # servers, disks and exporters fail in many ways; none may stop a training
                lost_it, self._deliver = self._deliver is not None and not again, None
                if lost_it:
                    # The connection worked before, so the first retry uses a new one at once.
                    again = True
                    self._wake.set()
                    continue
                if not self._failed:
                    _warn("this run", cause(error), self._journal)
                self._failed, pause = True, min(2 * pause, PAUSE_SECONDS)
            if closing:
                return

    def _send(self, closing: bool) -> None:
        """Connect to MLflow if there is no connection, and send the events that it has not received."""
        if self._deliver is None:
            # Other journals must be sent before an evaluation. That may log models, for which torch adds an
            # environment variable, so it happens when the evaluation only waits.
            if self._journal.adds and not closing:
                return
            # If MLflow is away, this fails once, and not for each journal that was left.
            connect()
            self._send_others()
            self._deliver = tracking.MlflowWriter(self._journal)
            self.address, self._sent = self._deliver.address, 0
        while self._sent < len(self._journal.events):
            self._deliver(self._journal.events[self._sent])
            self._sent += 1

    def _send_others(self) -> None:
        """Send journals that earlier processes left: all before an evaluation, before a training only missing ends.

        The rest is sent at the end of the training, because logging a model changes torch's random state for a moment,
        and the training draws from it.
        """
        if self._journal.adds:
            sync(workspace())
            return
        for other in left_behind():
            try:
                for end in _missing_end(other):
                    deliver = tracking.MlflowWriter(other)
                    deliver(other.begin)
                    deliver(end)
            except Exception as error:  # as in _work
                _warn("a run", cause(error), other)


def _warn(whose: str, reason: str, journal: Journal) -> None:
    missing = f"MLflow has not received all of {whose} ({tracking_uri()}: {reason})"
    warn(f"{missing}; {journal.folder} keeps it for `leanresnet sync`")
