"""`make team`: a team's services, 1,000 runs of 8 writers through them, the demo, and its results from DVC's remote."""

import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click
import psycopg2
from conftest import Shell, shell_in
from services import mlflow, postgres, s3, secrets

from leanresnet.files import file_hashes


@click.command()
@click.option("--runs", default=1000, show_default=True)
@click.option("--writers", default=8, show_default=True, help="Processes at once.")
def team(runs: int, writers: int) -> None:
    """Start the services of compose.yaml without containers and use them as a team does; ends at the first loss."""
    with tempfile.TemporaryDirectory() as place, secrets() as made, postgres(made / "postgres") as database:
        root = Path(place)
        with (
            s3(root / "s3", made / "s3") as store,
            mlflow(root, made, database, AWS_ENDPOINT_URL=store) as tracking,
        ):
            (made / "aws").write_text((made / "aws").read_text().replace("http://127.0.0.1:8333", store))
            environment = {"MLFLOW_TRACKING_URI": tracking, "AWS_SHARED_CREDENTIALS_FILE": str(made / "aws")}
            _many_runs(shell_in(Path(__file__).parent.parent, **environment), runs, writers)
            _size("database", _database_bytes(database, made / "postgres"), runs)
            _demo(shell_in(root / "demo", **environment), root)


def _many_runs(shell: Shell, runs: int, writers: int) -> None:
    said = shell(sys.executable, "-m", "bench", "scale", "--runs", str(runs), "--writers", str(writers)).stdout
    print(re.sub(r"^\{.*\n", "", said, flags=re.MULTILINE), end="")
    assert "scale/lost: 0 runs" in said


def _demo(shell: Shell, root: Path) -> None:
    """Trained, pushed, lost and pulled: the same bytes; and the weights in MLflow are these."""
    folder = root / "demo"
    shell_in(root)("leanresnet", "init", str(folder), "--preset", "demo")
    for command in ("repro", "remote add --default team s3://leanresnet/dvc", "push"):
        begun = time.perf_counter()
        shell("dvc", *command.split())
        print(f"dvc {command}: {time.perf_counter() - begun:.0f} s")
    outputs = [path for part in ("data", "models", "results") for path in (folder / part).rglob("*") if path.is_file()]
    before = {path: file_hashes(path) for path in outputs}
    for part in ("data", "models", "results", ".dvc/cache"):
        shutil.rmtree(folder / part)
    shell("dvc", "pull")
    assert {path: file_hashes(path) for path in outputs} == before
    weights = (folder / "models/student/model.safetensors").read_bytes()
    kept = [path for path in (root / "s3/mlflow").rglob("*.safetensors") if path.read_bytes() == weights]
    assert len(kept) == 1, kept
    for part in ("leanresnet/dvc", "mlflow"):
        sizes = [path.stat().st_size for path in (root / "s3" / part).rglob("*") if path.is_file()]
        print(f"s3://{part}: {len(sizes)} files, {sum(sizes):,} bytes")
    print(shell("leanresnet", "compare", "models/student", "models/baseline").stdout)


def _database_bytes(address: str, password: Path) -> int:
    host, port = address.split(":")
    where = {"host": host, "port": port, "user": "mlflow", "password": password.read_text(), "dbname": "mlflow"}
    connection = psycopg2.connect(**where)
    cursor = connection.cursor()
    cursor.execute("SELECT pg_database_size('mlflow')")
    (size,) = cursor.fetchone()
    connection.close()
    return int(size)


def _size(name: str, size: int, runs: int) -> None:
    print(f"{name}: {size:,} bytes, {size / runs:,.0f} a run")


if __name__ == "__main__":
    team()
