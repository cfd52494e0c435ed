"""The services of compose.yaml: what can be read of them, and MLflow on PostgreSQL for real (S3: `make team`)."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import services
import yaml
from imports import ROOT
from test_security import asked

from bench import scale
from leanresnet import registry
from leanresnet.reporting import sync

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SECRETS = {"postgres", "pg_service", "s3", "aws"}


def test_services_are_pinned_watched_and_closed_to_others() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["image"] == "leanresnet" or service["image"].rpartition(":")[2][0].isdigit(), name
        assert name == "trainer" or service["healthcheck"]["test"][0] == "CMD", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_secrets_are_files_that_git_and_the_image_leave_out(tmp_path: Path) -> None:
    assert {name: each["file"] for name, each in COMPOSE["secrets"].items()} == {n: f".secrets/{n}" for n in SECRETS}
    ignored = ["git", "-C", str(ROOT), "check-ignore", "--quiet", "--no-index", ".secrets/aws"]
    assert subprocess.run(ignored).returncode == 0
    assert ".secrets" in (ROOT / ".dockerignore").read_text().splitlines()
    folder = tmp_path / "secrets"
    subprocess.run([ROOT / "team/secrets", folder], check=True)
    assert {path.name for path in folder.iterdir()} == SECRETS
    assert folder.stat().st_mode & 0o777 == 0o700
    before = {path: path.read_text() for path in folder.iterdir()}
    again = subprocess.run([ROOT / "team/secrets", folder], capture_output=True, text=True)
    assert (again.returncode, "there already" in again.stderr) == (5, True)
    assert {path: path.read_text() for path in folder.iterdir()} == before
    with services.secrets() as other:
        assert all((other / name).read_text() != before[folder / name] for name in SECRETS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address, and the database's password."""
    if not services.POSTGRES:
        pytest.skip("PostgreSQL is not installed")
    folder = tmp_path_factory.mktemp("team")
    options = ["--workers=1", f"--artifacts-destination={folder}"]
    with (
        services.secrets() as made,
        services.postgres(made / "postgres") as database,
        services.mlflow(folder, made, database, *options) as address,
    ):
        yield address, (made / "postgres").read_text()


def test_eight_writers_lose_nothing(server: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server[0])
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: scale.write(2, 3, number), range(8)))
    sync(tmp_path)
    monkeypatch.setattr(registry, "PAGE", 5)
    assert scale.count_lost(registry.find_finished(), 16, 3) == 0
    assert scale.count_lost(registry.find_finished(), 17, 3) == 1
    assert not (tmp_path / "mlflow.db").exists()


def test_a_foreign_page_is_refused_and_no_process_shows_the_password(server: tuple[str, str]) -> None:
    address, password = server
    port = int(address.rpartition(":")[2])
    search, json_type = "/api/2.0/mlflow/experiments/search", {"Content-Type": "application/json"}
    assert asked(port, "GET", f"{search}?max_results=1", Host=f"127.0.0.1:{port}") == 200
    assert asked(port, "GET", f"{search}?max_results=1", Host="evil.example") == 403
    assert asked(port, "POST", search, Origin="https://evil.example", **json_type) == 403
    living = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
    (ours,) = (process for process in living if f"--port={port}" in process.cmdline())
    for process in (ours, *ours.children(recursive=True)):
        assert password not in f"{process.cmdline()} {process.environ()}"
