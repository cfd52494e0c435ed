"""The interface by which a training reports to MLflow: a run writes events to a journal, and a thread sends them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from leanresnet.errors import StoppedError
from leanresnet.tracking import source
from leanresnet.tracking.delivery import Sender
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
from leanresnet.tracking.journal import OwnJournal, new_id, open_journal

# How long a run waits for MLflow at its end, and at its end by a signal.
LAST_SECONDS, STOP_SECONDS = 30.0, 2.0
# The same if one of several processes fails: torchrun kills the others after 30 s, and the first has to say why before.
LOST_SECONDS = 20.0


class Run:
    """One run. Its methods do not wait for MLflow, except for `close` and `kill`.

    Attributes:
        id: id of its journal, which the MLflow run has as a tag.
    """

    def __init__(self, journal: OwnJournal) -> None:
        self.id = journal.id
        self._journal = journal
        self._sender = Sender(journal)
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
        """Report the start. With `weights`, (name of the model, SHA-256), the run adds to the one that made them."""
        tags = {**source.source_tags(), **tags}
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
            run.close(_last_seconds(status))


def _last_seconds(status: Status) -> float:
    if status == "KILLED":
        return STOP_SECONDS
    is_one_of_several = "TORCHELASTIC_RUN_ID" in os.environ
    return LOST_SECONDS if status == "FAILED" and is_one_of_several else LAST_SECONDS


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
