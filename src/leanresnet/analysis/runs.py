"""The runs in MLflow: how they are found, read, added to and registered as models."""

import math
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from leanresnet.analysis.dvc_experiments import is_named
from leanresnet.errors import DataError, LeanResNetError, StorageError, cause, redacted
from leanresnet.files import workspace
from leanresnet.tracking import limits
from leanresnet.tracking.connection import EXPERIMENT, connect, tracking_uri
from leanresnet.tracking.events import CHECKPOINT, DVC_WEIGHTS_TAG, EXPERIMENT_TAG, WEIGHTS_TAG
from leanresnet.tracking.mlflow_client import find_model, log_model

# Number of runs per request. A busy server took 15 s for a thousand, which exceeds the timeout of a request.
PAGE = 100
# Metrics with the validation accuracy of the weights that a run kept: measured by `evaluate` in float32, and measured
# by the training in its own precision.
EVALUATED, TRAINED = "val/evaluated_accuracy", "val/best_accuracy"
FINISHED = "attributes.status = 'FINISHED'"
# What may bring a run that is looked for in vain.
REMEDY = "`leanresnet sync` logs the models that DVC restored"
# How often the registration of a model is tried, because it fails if another process registers at the same time.
TRIES = 3


@dataclass(frozen=True)
class RunRecord:
    """A run in MLflow.

    Attributes:
        params: the run's params.
        metrics: the last value of each metric.
        validation: a function that requests the validation accuracy of each epoch from MLflow. It is a function
            because only a few of many runs are drawn.
        started: when it began, in milliseconds since 1970.
    """

    run_id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    validation: Callable[[], list[float]]
    started: int = 0

    @property
    def experiment(self) -> str:
        """The name of the DVC experiment, or an empty text; several have commas between them, see `experiments`."""
        return self.tags.get(EXPERIMENT_TAG, "")

    @property
    def experiments(self) -> list[str]:
        """The names of the DVC experiments whose model it trained."""
        return [name for name in self.experiment.split(", ") if name]

    def with_experiment(self, name: str) -> "RunRecord":
        """Return the record with another DVC experiment that has its model."""
        names = dict.fromkeys(filter(None, [*self.experiments, name]))
        return replace(self, tags=self.tags | {EXPERIMENT_TAG: ", ".join(names)})

    @property
    def label(self) -> str:
        """The name for tables and pictures: that of its experiment, or its own."""
        return self.experiment or self.name

    @property
    def model(self) -> str:
        return self.tags.get("model", "")

    def lacks(self, tags: Iterable[str], metrics: Iterable[str]) -> list[str]:
        """Return which of these tags and metrics the run lacks; a metric that is not finite counts as missing.

        A run that another program created may lack any of them.
        """
        missing = [tag for tag in tags if tag not in self.tags]
        return missing + [key for key in metrics if not math.isfinite(self.metrics.get(key, math.nan))]


def validation_of(runs: Iterable[RunRecord]) -> str:
    """Return the metric by which the runs are compared: `EVALUATED`, or `TRAINED` if one run was not evaluated."""
    return EVALUATED if all(EVALUATED in run.metrics for run in runs) else TRAINED


def find_experiments(name: str, here: Mapping[str, Collection[str]]) -> list[RunRecord]:
    """Return the finished runs of the DVC experiments `name` and `name-...`, the newest of each model.

    MLflow knows the experiment in which a model was trained. A model that existed before an experiment asked for it is
    found by its weights; the record of its run has the name of the experiment.

    Args:
        here: the weights of experiments, see `weights_of_experiments`. Other workspaces may have logged experiments of
            the same names to the same server, so a run of an experiment that is here has to have its weights.

    Raises:
        StorageError: if MLflow cannot be reached.
    """
    if "'" in name:  # DVC has no such experiments, and MLflow no escape for it
        return []
    found: dict[tuple[str, str], RunRecord] = {}
    for run in _search(f"tags.`{EXPERIMENT_TAG}` LIKE '{name}%' and {FINISHED}"):
        theirs = here.get(run.experiment)
        if is_named(run.experiment, name) and (theirs is None or run.tags.get(DVC_WEIGHTS_TAG) in theirs):
            found[run.experiment, run.model] = run
    existed: dict[str, RunRecord | None] = {run.tags.get(DVC_WEIGHTS_TAG, ""): run for run in found.values()}
    for experiment in (each for each in here if is_named(each, name)):
        for md5 in here[experiment]:
            if md5 not in existed:
                existed[md5] = _evaluated_or_newest(f"tags.`{DVC_WEIGHTS_TAG}` = '{md5}' and {FINISHED}")
            earlier = existed[md5]
            if earlier is not None:
                named = replace(earlier, tags=earlier.tags | {EXPERIMENT_TAG: experiment})
                found.setdefault((experiment, earlier.model), named)
    return list(found.values())


def find_finished() -> list[RunRecord]:
    """Return all finished runs, the oldest first; raise StorageError if MLflow cannot be reached."""
    return _search(FINISHED)


def find_run(run_id: str) -> RunRecord | None:
    """Return the run with this id, or None; raise StorageError if MLflow cannot be reached."""
    if not re.fullmatch(r"\w+", run_id):
        return None
    found = _search(f"attributes.run_id = '{run_id}'")
    return found[-1] if found else None


def find_run_of_weights(sha256: str, model: str | None = None) -> RunRecord | None:
    """Return the newest evaluated run that wrote a model.safetensors with this SHA-256, or None.

    If none of them was evaluated, it is the newest one. DVC evaluates a model that was trained again only if its bytes
    have changed.

    Args:
        model: name of the model, because a baseline and a teacher with the same recipe have the same weights; None for
            any.

    Raises:
        StorageError: if MLflow cannot be reached.
    """
    return _evaluated_or_newest(f"tags.`{WEIGHTS_TAG}` = '{sha256}'", model)


def download(run_id: str, artifact: str, folder: Path) -> Path | None:
    """Download an artifact of a run into a folder; return its path, or None if the run has no such artifact.

    Raises:
        StorageError: if MLflow cannot be reached.
    """
    try:
        client = connect().MlflowClient()
        parent = artifact.rpartition("/")[0]
        if artifact not in [file.path for file in client.list_artifacts(run_id, parent or None)]:
            return None
        return Path(client.download_artifacts(run_id, artifact, str(folder)))
    except Exception as error:
        message = f"{tracking_uri()}: MLflow does not return {artifact} of run {run_id} ({cause(error)})"
        raise StorageError(message) from error


def upload(run_id: str, path: Path, folder: str) -> None:
    """Add a file to the artifacts of a finished run.

    Raises:
        StorageError: if MLflow does not accept it.
    """
    try:
        connect().MlflowClient().log_artifact(run_id, str(path), folder)
    except Exception as error:
        message = f"{tracking_uri()}: MLflow does not accept {path} for run {run_id} ({cause(error)})"
        raise StorageError(message) from error


def register(run: RunRecord, name: str, alias: str, description: str | None) -> str:
    """Register the run's model under `name`, let `alias` refer to it, and return its version.

    A model that is registered again keeps its version. A model that was deleted in MLflow is logged again, from the
    checkpoint among the run's artifacts.

    Args:
        description: of the version; None keeps the one that it has.

    Raises:
        DataError: if the run has neither a model nor a checkpoint.
        StorageError: if MLflow does not accept the model.
    """
    try:
        mlflow = connect()
        with FileLock(workspace() / ".work" / "registry.lock"):
            for _ in range(TRIES - 1):
                # On a server, another process may register at the same time. The next attempt continues with what
                # this one has done.
                with suppress(mlflow.MlflowException):
                    return _register(mlflow, run, name, alias, description)
            return _register(mlflow, run, name, alias, description)
    except LeanResNetError:
        raise
    except Exception as error:
        raise StorageError(f"{tracking_uri()}: MLflow does not register run {run.run_id} ({cause(error)})") from error


def _register(mlflow: Any, run: RunRecord, name: str, alias: str, description: str | None) -> str:
    client = mlflow.MlflowClient()
    model = f"models:/{_model_of(mlflow, client, run.run_id)}"
    versions = [each for each in client.search_model_versions(f"name = '{name}'") if each.source == model]
    if not versions:
        versions = [mlflow.register_model(model, name)]
    version = str(min(int(each.version) for each in versions))
    if description is not None:
        client.update_model_version(name, version, limits.truncated(description, limits.DESCRIPTION))
    client.set_registered_model_alias(name, alias, version)
    return version


def _model_of(mlflow: Any, client: Any, run_id: str) -> str:
    info = client.get_run(run_id).info
    found = find_model(client, info.experiment_id, run_id)
    if found is None:
        with tempfile.TemporaryDirectory() as folder:
            if not client.list_artifacts(run_id, CHECKPOINT):
                reason = f"MLflow has neither its model nor its {CHECKPOINT} any more"
                raise DataError(f"run {run_id}: {reason}, expected: a run with one of them (delete this one)")
            log_model(mlflow, run_id, Path(client.download_artifacts(run_id, CHECKPOINT, folder)))
        # Logging the model has changed the end of the run, so it is restored.
        client.set_terminated(run_id, info.status, info.end_time)
        found = find_model(client, info.experiment_id, run_id)
    return str(found.model_id)


def place() -> str:
    """Return where the runs are looked for: the experiment, and the address without credentials."""
    return f"the experiment {EXPERIMENT} of {redacted(tracking_uri())}"


def _evaluated_or_newest(query: str, model: str | None = None) -> RunRecord | None:
    """Return the newest evaluated run of a model, or of any, that matches a query, or else the newest one."""
    found = [run for run in _search(query) if model in (None, run.model)]
    return max(reversed(found), key=lambda run: EVALUATED in run.metrics, default=None)


def _search(query: str) -> list[RunRecord]:
    """Return the runs that match a query, the oldest first."""
    try:
        client = connect().MlflowClient()
        experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
        search = partial(client.search_runs, [experiment], query, max_results=PAGE, order_by=["attributes.start_time"])
        page = search()
        found = list(page)
        while page.token:
            page = search(page_token=page.token)
            found += page
        return [_recorded(client, run) for run in found]
    except StorageError:
        raise
    except Exception as error:
        raise StorageError(f"{tracking_uri()}: MLflow does not answer for {query!r} ({cause(error)})") from error


def _recorded(client: Any, run: Any) -> RunRecord:
    info, data = run.info, run.data
    tags, params, metrics = dict(data.tags), dict(data.params), dict(data.metrics)
    validation = partial(_validation, client, info.run_id)
    return RunRecord(info.run_id, info.run_name, info.status, tags, params, metrics, validation, info.start_time)


def _validation(client: Any, run_id: str) -> list[float]:
    try:
        history = client.get_metric_history(run_id, "val/accuracy")
    except Exception as error:
        message = f"{tracking_uri()}: MLflow does not return the epochs of run {run_id} ({cause(error)})"
        raise StorageError(message) from error
    # An epoch that was repeated has a value for each time, of which the last one is the model's.
    last = {each.step: each.value for each in sorted(history, key=lambda each: (each.step, each.timestamp))}
    return list(last.values())
