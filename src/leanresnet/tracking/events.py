"""The reports of a run as typed events, each of which is one line of a journal.

A journal may come from another machine, so its lines are validated. A file is named by two plain names, another run by
the id of its journal or the digest of its weights, and no tag may have a name that MLflow or `MlflowWriter` sets.
"""

from time import time_ns
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from leanresnet.config.schema import Hex64, Section

# Names of tags. The first one is set by the journal's writer, the others are reported.
JOURNAL_TAG = "leanresnet.journal"
WEIGHTS_TAG = "leanresnet.weights_sha256"
DVC_WEIGHTS_TAG = "dvc.weights_md5"
EXPERIMENT_TAG = "dvc.experiment"
USER_TAG = "user"
PARENT_TAG = "mlflow.parentRunId"
# Folders of a run's artifacts: the two files of its model, and those of its results.
CHECKPOINT, RESULTS = "checkpoint", "results"
COMMIT = r"[0-9a-f]{40,64}"
JOURNAL_ID = r"^[0-9]{8}-[0-9]{6}-[0-9a-f]{8}$"


def _reports_no_reserved(tags: dict[str, str]) -> dict[str, str]:
    for name in tags:
        if name.startswith("mlflow.") or name == JOURNAL_TAG:
            raise ValueError(f"tag {name} is set by MLflow or by the journal's writer, expected: another name")
    return tags


Scalar = str | int | float | bool | None
JournalId = Annotated[str, StringConstraints(pattern=JOURNAL_ID)]
Name = Annotated[str, StringConstraints(pattern=r"^\w[\w .-]*$", max_length=200)]
Tags = Annotated[dict[str, str], AfterValidator(_reports_no_reserved)]
Weights = tuple[str, Hex64]
Status = Literal["FINISHED", "FAILED", "KILLED"]
Int63 = Annotated[int, Field(ge=0, lt=2**63)]


class _Reported(Section):
    """The fields of every event.

    Attributes:
        time: milliseconds since 1970.
        only_if_new: whether the event is logged only to a run that this journal created.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")
    time: Int63 = Field(default_factory=lambda: time_ns() // 1_000_000)
    only_if_new: bool = False


class Begin(_Reported):
    """The start of a journal. With `weights`, (name of the model, SHA-256), it adds to the run that made them."""

    type: Literal["begin"] = "begin"
    name: str
    params: dict[str, Scalar]
    tags: Tags
    weights: Weights | None


class Metrics(_Reported):
    """Values at a step. With `dataset`, (name, digest), they were measured on it and belong to the run's model, too."""

    type: Literal["metrics"] = "metrics"
    values: dict[str, float]
    step: Int63
    dataset: tuple[str, str] | None = None


class SetTags(_Reported):
    type: Literal["tags"] = "tags"
    tags: Tags


class Artifact(_Reported):
    """A file that the journal holds as `files/<folder>/<name>`."""

    type: Literal["artifact"] = "artifact"
    name: Name
    folder: Name


class Dataset(_Reported):
    """The data that the run used; `classes` has the number of images of each class, if it is known."""

    type: Literal["dataset"] = "dataset"
    name: str
    digest: str
    context: str
    classes: dict[str, Int63] | None = None


class LoggedModel(_Reported):
    type: Literal["model"] = "model"
    folder: Name


class Note(_Reported):
    type: Literal["note"] = "note"
    text: str
    teacher: Weights | None


class Parent(_Reported):
    type: Literal["parent"] = "parent"
    journal: JournalId


class End(_Reported):
    type: Literal["end"] = "end"
    status: Status


Event = Begin | Metrics | SetTags | Artifact | Dataset | LoggedModel | Note | Parent | End
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


def read_event(line: bytes) -> Event:
    """Parse a line of a journal; raise ValueError with the first mistake in it."""
    try:
        return _EVENT.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(": ".join([*map(str, first["loc"]), first["msg"]])) from error
