"""MLflow's tables without a run; to make them takes seconds, which few tests are about."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from leanresnet.tracking.connection import _create_database


@cache
def _empty() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "mlflow.db")
        _create_database(path)
        return path.read_bytes()


def place_database(folder: Path) -> None:
    (folder / "mlflow.db").write_bytes(_empty())
