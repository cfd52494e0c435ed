"""MLflow's database of a workspace: its tables without a run, which take seconds to make, and its runs."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from leanresnet.tracking.connection import _create_database


@cache
def _empty() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "mlflow.db")
        _create_database(path)
        return path.read_bytes()


def place_database(folder: Path) -> None:
    (folder / "mlflow.db").write_bytes(_empty())


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs_of(folder: Path) -> list[Run]:
    """The newest first."""
    client = client_of(folder)
    return list(client.search_runs([client.get_experiment_by_name("leanresnet").experiment_id]))
