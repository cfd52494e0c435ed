"""The writer of a journal's events to MLflow.

A run is found by the id of its journal, and the run of a model by the SHA-256 of its weights. So no output of a stage
has to hold a run id.
"""

import json
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from leanresnet.config.schema import IMAGE_SIZE
from leanresnet.errors import StorageError
from leanresnet.tracking import limits
from leanresnet.tracking.connection import EXPERIMENT, connect, page
from leanresnet.tracking.events import (
    COMMIT,
    JOURNAL_TAG,
    PARENT_TAG,
    USER_TAG,
    WEIGHTS_TAG,
    Artifact,
    Begin,
    Dataset,
    End,
    Event,
    LoggedModel,
    Metrics,
    Note,
    Parent,
    SetTags,
    Weights,
)
from leanresnet.tracking.journal import Journal, training_of

# The schema of a split as MLflow's own data sets of arrays write it.
SCHEMA = json.dumps(
    {
        "mlflow_tensorspec": {
            kind: json.dumps([{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}])
            for kind, dtype, shape in (
                ("features", "uint8", [-1, 3, IMAGE_SIZE, IMAGE_SIZE]),
                ("targets", "int64", [-1]),
            )
        }
    }
)


class MlflowWriter:
    """A callable that logs the events of a journal to MLflow. Logging an event again changes nothing.

    The events are logged to the run with the journal's id, which is created if there is none. A journal that begins
    with weights adds to the run that made them, and its `only_if_new` events are ignored if there is such a run.

    Args:
        journal: the journal.
        among: ids of the journals to whose runs this one may add; None for any run of the experiment.

    Raises:
        StorageError: if an event names a file that is not in the journal, MLflow is not installed, or the journal is
            that of an evaluation whose training is still in a journal of the workspace.
        Exception: any exception of MLflow, if it cannot be reached or refuses an event.
    """

    def __init__(self, journal: Journal, among: Collection[str] | None = None) -> None:
        self._mlflow = connect()
        self._client = self._mlflow.MlflowClient()
        self._journal = journal
        self._experiment = self._client.get_experiment_by_name(EXPERIMENT).experiment_id
        begin = journal.begin
        run = self._run_of_journal(journal.id)
        self._is_new = run is not None
        if run is None and begin.weights is not None:
            run = self._run_of_weights(begin.weights, among)
        if run is None:
            training = training_of(begin.weights) if begin.weights is not None and among is None else None
            if training is not None:
                # The run that an evaluation makes of its own would hide the one that MLflow receives later.
                raise StorageError(f"{training.folder}: not received yet, and it is the training of this model")
            self._is_new = True
            tags = limits.tags({**begin.tags, **_mlflows_tags(begin), JOURNAL_TAG: journal.id})
            run = self._client.create_run(self._experiment, begin.time, tags, limits.truncated(begin.name, limits.NAME))
        self._run_id = str(run.info.run_id)
        histories = [self._client.get_metric_history(self._run_id, name) for name in run.data.metrics]
        logged = sorted((each for history in histories for each in history), key=lambda each: each.timestamp)
        # The time and the value that were logged last, by name and step.
        self._logged = {(each.key, each.step): (each.timestamp, each.value) for each in logged}

    @property
    def address(self) -> str:
        """The address of the run on MLflow's page, which need not be served at the moment."""
        return f"{page()}/#/experiments/{self._experiment}/runs/{self._run_id}?workflowType=machine_learning"

    def __call__(self, event: Event) -> None:
        if event.only_if_new and not self._is_new:
            return
        match event:
            case Begin():
                self._begin(event)
            case Metrics():
                self._log_metrics(event)
            case SetTags():
                self._set_tags(event.tags)
            case Artifact():
                path = self._journal.file("files", event.folder, event.name)
                self._client.log_artifact(self._run_id, str(path), event.folder)
            case Dataset():
                self._log_dataset(event)
            case LoggedModel():
                self._log_model(event)
            case Note():
                self._set_note(event)
            case Parent():
                self._set_parent(event)
            case End():
                self._client.set_terminated(self._run_id, event.status, event.time)

    def _begin(self, event: Begin) -> None:
        from mlflow.entities import Param

        if self._is_new:
            params = [Param(key, value) for key, value in limits.params(event.params).items()]
            self._client.log_batch(self._run_id, params=params)
            self._client.update_run(self._run_id, status="RUNNING")

    def _log_metrics(self, event: Metrics) -> None:
        from mlflow.entities import Metric

        step, values = event.step, limits.metrics(event.values).items()
        fresh = [(name, value) for name, value in values if self._is_fresh(name, value, event)]
        of_model: dict[str, str] = {}
        model = find_model(self._client, self._experiment, self._run_id) if event.dataset else None
        if event.dataset and model is not None:
            name, digest = _dataset(*event.dataset)
            of_model = {"model_id": model.model_id, "dataset_name": name, "dataset_digest": digest}
        metrics = [Metric(name, value, event.time, step, **of_model) for name, value in fresh]
        self._client.log_batch(self._run_id, metrics=metrics)
        self._logged |= {(name, step): (event.time, value) for name, value in fresh}

    def _is_fresh(self, name: str, value: float, event: Metrics) -> bool:
        """Return whether to log a value: a step's first one, or a later one that differs.

        An evaluation may measure a model again, and a training may repeat an epoch after its last snapshot with other
        values.
        """
        if (name, event.step) not in self._logged:
            return True
        time, last = self._logged[name, event.step]
        return bool(event.time > time and value != last)

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        fitted = [RunTag(name, value) for name, value in limits.tags(tags).items()]
        self._client.log_batch(self._run_id, tags=fitted)

    def _log_dataset(self, event: Dataset) -> None:
        from mlflow.entities import Dataset as DatasetEntity
        from mlflow.entities import DatasetInput, InputTag

        name, digest = _dataset(event.name, event.digest)
        profile = None
        if event.classes is not None:
            profile = json.dumps({"num_rows": sum(event.classes.values()), "rows_by_class": event.classes})
        dataset = DatasetEntity(name, digest, "code", json.dumps({"tags": {}}), SCHEMA, profile)
        tags = [InputTag("mlflow.data.context", event.context)]
        self._client.log_inputs(self._run_id, [DatasetInput(dataset, tags)])

    def _log_model(self, event: LoggedModel) -> None:
        if find_model(self._client, self._experiment, self._run_id) is None:
            from leanresnet.models.checkpoint import DESCRIPTION, WEIGHTS

            weights, _ = (self._journal.file("files", event.folder, name) for name in (WEIGHTS, DESCRIPTION))
            log_model(self._mlflow, self._run_id, weights.parent)

    def _set_note(self, event: Note) -> None:
        tags, text = {}, event.text
        teacher = self._run_of_weights(event.teacher) if event.teacher else None
        if teacher is not None:
            run_id = str(teacher.info.run_id)
            tags["teacher.run_id"] = run_id
            text += f" Distilled from [its teacher](#/experiments/{self._experiment}/runs/{run_id})."
        self._set_tags({**tags, "mlflow.note.content": text})

    def _set_parent(self, event: Parent) -> None:
        parent = self._run_of_journal(event.journal)
        if parent is not None:
            self._set_tags({PARENT_TAG: str(parent.info.run_id)})

    def _run_of_journal(self, journal_id: str) -> Any:
        """Return the newest run with this tag, or None."""
        found = self._client.search_runs([self._experiment], f"tags.`{JOURNAL_TAG}` = '{journal_id}'", max_results=1)
        return found[0] if found else None

    def _run_of_weights(self, weights: Weights, among: Collection[str] | None = None) -> Any:
        """Return the newest run that made the weights, or None.

        Args:
            among: ids of the journals whose runs are considered; None for any run.
        """
        model, sha256 = weights
        for run in self._client.search_runs([self._experiment], f"tags.`{WEIGHTS_TAG}` = '{sha256}'"):
            tags = run.data.tags
            if tags.get("model") == model and (among is None or tags.get(JOURNAL_TAG) in among):
                return run
        return None


def _dataset(name: str, digest: str) -> tuple[str, str]:
    return limits.truncated(name, limits.DATASET_NAME), limits.truncated(digest, limits.DATASET_DIGEST)


def _mlflows_tags(begin: Begin) -> dict[str, str]:
    """Return the tags for which MLflow's page has columns: the user, and the source with its version."""
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": f"dvc.yaml:{begin.tags.get('dvc.stage', begin.name)}"}
    if USER_TAG in begin.tags:
        tags["mlflow.user"] = limits.truncated(begin.tags[USER_TAG], limits.NAME)
    # The code of a run that is recorded from its outputs is not known.
    if begin.weights is None and re.fullmatch(COMMIT, begin.tags.get("git.commit", "")):
        tags["mlflow.source.git.commit"] = begin.tags["git.commit"]
    return tags


def find_model(client: Any, experiment: str, run_id: str) -> Any:
    """Return the model that a run logged in MLflow's own format, or None if it has none or it was deleted."""
    from mlflow.entities import LoggedModelStatus

    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    return next((model for model in found if model.status == LoggedModelStatus.READY), None)


def log_model(mlflow: Any, run_id: str, checkpoint: Path) -> None:
    """Log the model in the folder `checkpoint` in MLflow's own format, as a `Served` network.

    `mlflow.pytorch.load_model` loads it.
    """
    import torch
    from mlflow.models import infer_signature

    from leanresnet.models.checkpoint import load_model
    from leanresnet.models.served import Served

    model = load_model(checkpoint)
    net = Served(model.net).eval()
    example = torch.zeros(2, 3, 32, 32)
    with torch.no_grad():
        signature = infer_signature(example.numpy(), net(example).numpy())
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id):
        # torch warns of every exported buffer; the warning does not apply to a CPU.
        warnings.filterwarnings("ignore", "No complete tensor found")
        mlflow.pytorch.log_model(
            net,
            name=limits.model_name(model.about["name"]),
            input_example=example.numpy(),
            signature=signature,
            metadata={"inputs": "RGB images, each number a whole one from 0 to 255", "outputs": "logits"},
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"mlflow=={mlflow.__version__}"],
        )
