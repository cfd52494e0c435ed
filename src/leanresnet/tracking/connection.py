"""The connection to MLflow: its address, and the database that a workspace has by default."""

import importlib.util
import logging
import os
import re
import shlex
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock

from leanresnet.errors import ConfigError, StorageError, cause, redacted, require
from leanresnet.files import workspace
from leanresnet.tracking import views

EXPERIMENT = "leanresnet"
# Names in the workspace.
DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
# The port of `leanresnet ui`.
PORT = 5000
# An address that lacks its http://.
HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/|$)")
# Environment variables of MLflow, see `set_environment`. With MLflow's defaults, one call to a dead server waits for
# four minutes; the callers do their own retries. MLflow itself sets the last one while it logs a model.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "_MLFLOW_IS_IN_SERVING_ENVIRONMENT": "false",
}


def page(port: int = PORT) -> str:
    """Return the address of MLflow's page: that of the server, or the one that `leanresnet ui` serves at this port."""
    return redacted(tracking_uri()).rstrip("/") if has_server() else f"http://127.0.0.1:{port}"


def has_server() -> bool:
    """Return whether the runs go to a server, which serves the page itself."""
    return tracking_uri().startswith("http")


def page_addresses() -> dict[str, str]:
    """Return the addresses of the saved views by name, relative to MLflow's page; create the database if there is none.

    Raises:
        StorageError: if MLflow cannot be reached.
    """
    try:
        experiment = connect().get_experiment_by_name(EXPERIMENT)
    except StorageError:
        raise
    except Exception as error:
        raise StorageError(f"{tracking_uri()}: MLflow does not answer ({cause(error)})") from error
    return views.addresses(experiment.experiment_id)


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the address of a database in the workspace. Paths are relative to the workspace.

    Raises:
        ConfigError: if it is no address, or depends on the workspace and there is none.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE}"
    scheme, slashes, rest = given.partition("://")
    if slashes and scheme.partition("+")[0] == "sqlite":
        path, mark, query = rest.removeprefix("/").partition("?")
        return f"{_sqlite_uri(_in_workspace(unquote(path)))}{mark}{query}"
    try:
        parts = urlsplit(given)
    except ValueError as error:
        raise ConfigError(f"MLFLOW_TRACKING_URI = {given}: {error}, expected: an address") from error
    if HOST_AND_PORT.match(given):
        raise ConfigError(f"MLFLOW_TRACKING_URI = {given}: no address, expected: http://{given}")
    if parts.scheme == "postgresql":
        # SQLAlchemy would take psycopg, and the extra `team` installs psycopg2.
        return f"postgresql+psycopg2://{rest}"
    if parts.scheme in ("", "file") and given != "databricks":
        return _in_workspace(unquote(parts.path)).as_uri()
    return given


def _sqlite_uri(path: Path) -> str:
    # The driver is named because MLflow creates the parent folder of an address that begins with sqlite:///, under its
    # quoted name.
    return f"sqlite+pysqlite:///{quote(str(path))}"


def _in_workspace(path: str) -> Path:
    return Path(path) if Path(path).is_absolute() else workspace() / path


def _database(uri: str) -> Path | None:
    """Return the file of an address that `tracking_uri` returned, or None if it is not one of sqlite."""
    scheme, _, path = uri.partition(":///")
    return Path(unquote(path.partition("?")[0])) if scheme == "sqlite+pysqlite" else None


def set_environment() -> None:
    """Set all environment variables that MLflow reads or sets; a thread that uses MLflow must be started after it.

    With several threads, a variable may be changed but none be added. Adding one can move the array of variables, and
    glibc before 2.41 does not stop another thread from reading the old array, by which the process ends by SIGSEGV.
    torch reads it during a training, and MLflow while it is imported.

    Raises:
        ConfigError: as `tracking_uri`.
    """
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def connect() -> Any:
    """Return the mlflow module, connected to the address, where this project's experiment exists.

    Raises:
        StorageError: if mlflow is not installed, the experiment was deleted, or the file of a database cannot be one.
        Exception: any exception of MLflow, if it cannot be reached.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise StorageError("mlflow is not installed")
    set_environment()
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = tracking_uri()
    if uri.startswith("postgresql+psycopg2:"):
        require("team", "psycopg2")
    mlflow.set_tracking_uri(uri)
    database = _database(uri)
    if database is None:
        if _find_experiment(mlflow, None).startswith("s3:"):
            require("team", "boto3")
        return mlflow
    # SQLAlchemy would try for two minutes.
    if database.is_dir() or not database.parent.is_dir():
        wrong = "a folder" if database.is_dir() else "in a folder that does not exist"
        raise StorageError(f"{database}: {wrong}, expected: a file for MLflow's database")
    lock = database.parent / ".work" / "mlflow.lock"
    with suppress(OSError):
        lock.parent.mkdir(exist_ok=True)
    # Two processes that create a database at the same time would damage it. In a read-only workspace, which can be
    # read all the same, there is nothing to create.
    with FileLock(lock) if os.access(lock.parent, os.W_OK) else nullcontext():
        _create_database(database)
        artifacts = (database.parent / ARTIFACTS).as_uri()
        before = _find_experiment(mlflow, artifacts)
        if before != artifacts and before.startswith("file:") and before.endswith(f"/{ARTIFACTS}"):
            _follow_move(uri, before, artifacts)
    return mlflow


def _find_experiment(mlflow: Any, artifacts: str | None) -> str:
    """Return the location of the artifacts of the experiment with its saved views; create what is missing.

    `mlflow.set_experiment` is not used, because it adds an environment variable, see `set_environment`.

    Args:
        artifacts: location of the artifacts of a new experiment; None lets the server choose it.
    """
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        experiment = client.get_experiment(client.create_experiment(EXPERIMENT, artifact_location=artifacts))
    if experiment.lifecycle_stage != "active":
        where, restore = tracking_uri(), f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        remedy = f"MLFLOW_TRACKING_URI={shlex.quote(where)} {restore}"
        raise StorageError(f"{where}: the experiment {EXPERIMENT} was deleted, expected: it is restored by `{remedy}`")
    for tag, view in views.missing(experiment.tags).items():
        client.set_experiment_tag(experiment.experiment_id, tag, view)
    return str(experiment.artifact_location)


def _create_database(path: Path) -> None:
    """Create a database if there is none.

    It is created under another name and then renamed, because a process that is killed would leave an unusable file.
    """
    from mlflow.tracking import MlflowClient

    if not path.exists():
        # It gets a folder of its own, because sqlite writes other files beside a database.
        folder = path.with_name(f"{path.name}.new")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        MlflowClient(_sqlite_uri(folder / path.name)).search_experiments(max_results=1)
        (folder / path.name).replace(path)
        folder.rmdir()


def _follow_move(uri: str, before: str, now: str) -> None:
    """Replace the location of the artifacts in a database that was moved or copied together with them.

    MLflow stores the location in each experiment, run, logged model and model version, so that a copy would otherwise
    write to the artifacts of the original.
    """
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
    from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun
    from sqlalchemy import create_engine, func, update

    engine = create_engine(uri)
    with engine.begin() as connection:
        for place in (
            SqlExperiment.artifact_location,
            SqlRun.artifact_uri,
            SqlLoggedModel.artifact_location,
            SqlModelVersion.source,
            SqlModelVersion.storage_location,
        ):
            is_inside = func.substr(place + "/", 1, len(before) + 1) == f"{before}/"
            moved = update(place.class_).where(is_inside).values({place: now + func.substr(place, len(before) + 1)})
            connection.execute(moved)
    engine.dispose()
