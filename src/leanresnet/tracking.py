"""MLflow, and nothing else imports it: a run as a context manager.

A run is found again by the SHA-256 of the weights it made, so no run id has to be kept in a
stage's output. Tracking never costs a training: when the server fails, one line says so,
the run goes on without it, and evaluation records what is missing from the outputs.
"""

import importlib.util
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from leanresnet.errors import StorageError
from leanresnet.files import workspace

EXPERIMENT = "leanresnet"
WEIGHTS_TAG = "leanresnet.weights_sha256"
EXPERIMENT_TAG = "dvc.experiment"


@dataclass(frozen=True)
class Recorded:
    """A finished run of a DVC experiment, as MLflow has it.

    `metrics` are the last ones; `validation` is the accuracy of each epoch.
    """

    experiment: str
    model: str
    params: dict[str, str]
    metrics: dict[str, float]
    validation: list[float]


class Run:
    """One MLflow run; every method is a no-op once tracking is unavailable."""

    def __init__(self, run_id: str | None) -> None:
        self.run_id = run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._call(lambda mlflow: mlflow.log_metrics(dict(metrics), step=step))

    def log_history(self, rows: list[dict[str, float]]) -> None:
        """Rows of epochs 1, 2, ... of a training that ended before."""
        for epoch, row in enumerate(rows, start=1):
            self.log_metrics(row, epoch)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._call(lambda mlflow: mlflow.set_tags(dict(tags)))

    def log_artifact(self, path: Path, folder: str) -> None:
        self._call(lambda mlflow: mlflow.log_artifact(str(path), folder))

    def log_dataset(self, name: str, digest: str, context: str) -> None:
        """Name the data the run used; `digest` is the DVC md5 of the split's file."""

        def log(mlflow: Any) -> None:
            from mlflow.data.code_dataset_source import CodeDatasetSource
            from mlflow.data.meta_dataset import MetaDataset

            mlflow.log_input(MetaDataset(CodeDatasetSource({}), name, digest), context)

        self._call(log)

    def log_model(self, net: torch.nn.Module) -> None:
        """The network as a model that `mlflow.pytorch.load_model` loads: raw pixels in, logits out."""

        def log(mlflow: Any) -> None:
            from mlflow.models import infer_signature
            from mlflow.pytorch import log_model

            example = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
            on_cpu = net.to("cpu").eval()
            with torch.no_grad():
                signature = infer_signature(example.numpy(), on_cpu(example).numpy())
            with warnings.catch_warnings():
                # torch says this of every exported buffer, and on the CPU it does not matter.
                warnings.filterwarnings("ignore", "No complete tensor found")
                log_model(
                    on_cpu,
                    name="model",
                    input_example=example.numpy(),
                    signature=signature,
                    pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"mlflow=={mlflow.__version__}"],
                )

        self._call(log)

    def _call(self, action: Callable[[Any], None]) -> None:
        if self.run_id is None:
            return
        import mlflow

        try:
            action(mlflow)
        except Exception as error:  # servers, disks and exporters fail in many ways; none may cost a training
            _warn(error)
            self.run_id = None


@contextmanager
def start_run(name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> Iterator[Run]:
    """A new run; an exception inside the block marks it FAILED."""
    all_tags = {**_code_version(), **tags}

    def start(mlflow: Any) -> Any:
        run = mlflow.start_run(run_name=name, tags=all_tags)
        mlflow.log_params(dict(params))
        return run

    with _entered(start) as run:
        yield run


@contextmanager
def resume_run(run_id: str | None) -> Iterator[Run]:
    """Add to a run that exists; None when it is unavailable."""
    if run_id is None:
        yield Run(None)
        return
    with _entered(lambda mlflow: mlflow.start_run(run_id=run_id)) as run:
        yield run


def find_run(model: str, weights_sha256: str) -> str | None:
    """The id of the newest finished run of `model` that made these weights; None when there is none."""
    mlflow = _connect()
    if mlflow is None:
        return None
    query = f"tags.`{WEIGHTS_TAG}` = '{weights_sha256}' and tags.model = '{model}' and attributes.status = 'FINISHED'"
    try:
        found = mlflow.search_runs(filter_string=query, max_results=1, output_format="list")
    except (mlflow.exceptions.MlflowException, OSError) as error:
        _warn(error)
        return None
    return str(found[0].info.run_id) if found else None


def find_experiments(question: str) -> list[Recorded]:
    """The finished runs of the DVC experiments `question` and `question-...`, the newest of each model.

    Raises:
        StorageError: MLflow cannot be asked.
    """
    mlflow = _connect()
    if mlflow is None:
        raise StorageError(f"{tracking_uri()}: MLflow cannot be asked")
    query = f"tags.`{EXPERIMENT_TAG}` LIKE '{question}%' and attributes.status = 'FINISHED'"
    newest: dict[tuple[str, str], Recorded] = {}
    client = mlflow.MlflowClient()
    try:
        runs = mlflow.search_runs(filter_string=query, order_by=["attributes.start_time"], output_format="list")
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise StorageError(f"{tracking_uri()}: MLflow does not answer for {question!r} ({error})") from error
    for run in runs:
        experiment, model = run.data.tags[EXPERIMENT_TAG], run.data.tags["model"]
        if experiment == question or experiment.startswith(f"{question}-"):
            history = sorted(client.get_metric_history(run.info.run_id, "val/accuracy"), key=lambda each: each.step)
            curve = [each.value for each in history]
            newest[experiment, model] = Recorded(experiment, model, run.data.params, run.data.metrics, curve)
    return list(newest.values())


def run_link(run_id: str) -> str:
    """The run's place in the UI, relative to the UI's address."""
    return f"#/experiments/{_experiment_id()}/runs/{run_id}"


def runs_table() -> str:
    """The runs table's place in the UI, relative to the UI's address; a fresh database is made if there is none."""
    return f"#/experiments/{_experiment_id()}/runs?workflowType=machine_learning"


def _experiment_id() -> str:
    mlflow = _connect()
    try:
        return str(mlflow.get_experiment_by_name(EXPERIMENT).experiment_id) if mlflow else "0"
    except (mlflow.exceptions.MlflowException, OSError) as error:
        _warn(error)
        return "0"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or a database in the workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace() / 'mlflow.db'}"


@contextmanager
def _entered(start: Callable[[Any], Any]) -> Iterator[Run]:
    mlflow = _connect()
    if mlflow is None:
        yield Run(None)
        return
    try:
        active = start(mlflow)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        _warn(error)
        yield Run(None)
        return
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    run = Run(active.info.run_id)
    try:
        yield run
        # A run that lost its server halfway is not whole: evaluation records it anew from the outputs.
        status = "FINISHED" if run.run_id else "FAILED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        try:
            mlflow.end_run(status)
        except (mlflow.exceptions.MlflowException, OSError) as error:
            _warn(error)


def _connect() -> Any:
    """The mlflow module with its experiment chosen, or None when it is missing or its server does not answer."""
    if importlib.util.find_spec("mlflow") is None:
        _warn("mlflow is not installed")
        return None
    # Unset, these let one call to a dead server wait four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri, root = tracking_uri(), workspace()
    local = (root / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    mlflow.set_tracking_uri(uri)
    try:
        # Two processes that create a fresh database at once break it.
        (root / ".work").mkdir(exist_ok=True)
        with FileLock(root / ".work" / "mlflow.lock"):
            experiment = mlflow.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                mlflow.create_experiment(EXPERIMENT, artifact_location=local)
            mlflow.set_experiment(EXPERIMENT)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        _warn(error)
        return None
    return mlflow


def _code_version() -> dict[str, str]:
    """The git commit of the code and whether files differ from it; "none" outside git."""
    commit = _git("rev-parse", "HEAD")
    # dvc.lock changes while the stages run; what determines a run are the code and the values.
    parts = [f":(top){part}" for part in ("src", "pipeline", "params.yaml", "dvc.yaml")]
    status = _git("status", "--porcelain", "--", *parts)
    dirty = "none" if status is None else str(bool(status)).lower()
    tags = {"git.commit": commit or "none", "git.dirty": dirty}
    if "DVC_EXP_NAME" in os.environ:
        tags[EXPERIMENT_TAG] = os.environ["DVC_EXP_NAME"]
    return tags


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _warn(reason: object) -> None:
    line = " ".join(str(reason).split())
    print(f"warning: not tracked in MLflow: {line[:200]}", file=sys.stderr)
