"""The services of compose.yaml: what can be read of them, and MLflow on PostgreSQL for real (S3: `make team`)."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import services
import yaml
from conftest import Checkout, new_checkout, shell_in
from forked import path_of_forks
from imports import ROOT
from mlflow.tracking import MlflowClient
from test_security import asked
from test_tracking import EPOCHS, MODELS, by_model, runs_by_model

from bench import scale
from leanresnet.analysis import runs as registry
from leanresnet.analysis.champion import register_champion
from leanresnet.analysis.lineage import lineage
from leanresnet.tracking import limits
from leanresnet.tracking import run as reporting
from leanresnet.tracking.delivery import sync

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SECRETS = {"postgres", "pg_service", "s3", "aws", "aws_mlflow"}
DIGEST = r"@sha256:[0-9a-f]{64}"


def test_services_are_watched_and_closed_to_others() -> None:
    for name, service in SERVICES.items():
        assert name == "trainer" or service["healthcheck"]["test"][0] == "CMD", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    for name in ("s3", "mlflow", "trainer"):
        assert (SERVICES[name]["read_only"], SERVICES[name]["cap_drop"]) == (True, ["ALL"]), name


def test_compiled_code_is_written_where_it_can_be_loaded() -> None:
    """Not on a tmpfs, which Docker mounts with noexec: the C++ compiler's and Triton's cache, by default in /tmp."""
    trainer = SERVICES["trainer"]
    volumes = [volume.split(":")[1] for volume in trainer["volumes"]]
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        place = Path(trainer["environment"][name])
        assert any(place.is_relative_to(volume) for volume in volumes), name
        assert not any(place.is_relative_to(mount.partition(":")[0]) for mount in trainer["tmpfs"]), name


def test_what_comes_from_elsewhere_is_pinned_by_its_content() -> None:
    for name, service in SERVICES.items():
        assert service["image"] == "leanresnet" or re.search(rf":[\d.]+{DIGEST}$", service["image"]), name
    bases = re.findall(r"^FROM (\S+)(?: AS (\w+))?", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    stages = {stage for _, stage in bases}
    assert all(base in stages or re.search(f"{DIGEST}$", base) for base, _ in bases), bases
    for workflow in (ROOT / ".github/workflows").iterdir():
        used = re.findall(r"uses: (\S+)", workflow.read_text())
        assert used
        assert all(re.search("@[0-9a-f]{40}$", action) for action in used), used


def neighbours(name: str) -> set[str]:
    """The services that share a network with this one, by which they reach all of its ports."""
    networks = {other: set(service.get("networks", ["default"])) for other, service in SERVICES.items()}
    return {other for other, each in networks.items() if each & networks[name]} - {name}


def test_ports_that_ask_for_no_key_are_reached_by_the_service_before_them_alone() -> None:
    assert neighbours("store") == {"s3"}
    assert neighbours("postgres") == {"mlflow"}
    for name in ("store", "postgres"):
        assert "ports" not in SERVICES[name]
        assert all(COMPOSE["networks"][network]["internal"] for network in SERVICES[name]["networks"])
    gate = (ROOT / COMPOSE["configs"]["s3"]["file"]).read_text()
    assert re.findall(r"^\s*(?:bind|server) .*?:(\d+)", gate, re.MULTILINE) == ["8333", "8333"]


def test_a_key_opens_the_bucket_of_its_service_alone(tmp_path: Path) -> None:
    subprocess.run([ROOT / "team/secrets", tmp_path / "made"], check=True)
    identities = json.loads((tmp_path / "made/s3").read_text())["identities"]
    opened = {each["credentials"][0]["accessKey"]: each["actions"] for each in identities}
    for file, bucket in (("aws", "leanresnet"), ("aws_mlflow", "mlflow")):
        text = (tmp_path / "made" / file).read_text()
        (access,) = re.findall("aws_access_key_id = (.*)", text)
        (secret,) = re.findall("aws_secret_access_key = (.*)", text)
        assert opened.pop(access) == [f"{action}:{bucket}" for action in ("Read", "Write", "List")]
        assert [each["credentials"][0]["secretKey"] for each in identities].count(secret) == 1
    assert not opened
    mounted = {name: set(service.get("secrets", [])) for name, service in SERVICES.items()}
    assert {"trainer": {"aws"}, "mlflow": {"pg_service", "aws_mlflow"}, "store": {"s3"}}.items() <= mounted.items()
    assert [name for name, secrets in mounted.items() if "s3" in secrets] == ["store"]
    assert "-bucket=leanresnet,mlflow" in SERVICES["store"]["command"]
    assert "--artifacts-destination=s3://mlflow" in SERVICES["mlflow"]["command"]
    assert "s3://leanresnet/" in SERVICES["trainer"]["command"][0]


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
    assert (again.returncode, "already exists" in again.stderr) == (5, True)
    assert {path: path.read_text() for path in folder.iterdir()} == before
    with services.secrets() as other:
        assert all((other / name).read_text() != before[folder / name] for name in SECRETS)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Not `checkout`, whose tests come last and on any worker: these stay together, so that the server starts once."""
    return new_checkout(tmp_path_factory)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address, and the database's password."""
    if not services.POSTGRES:
        missing = "PostgreSQL is not installed, so MLflow was not tried on it (Debian: apt-get install postgresql)"
        assert "CI" not in os.environ, missing
        pytest.skip(missing)
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


def test_what_is_too_long_or_odd_for_a_column_arrives(
    server: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server[0])
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    long = "x" * 20_000
    with reporting.start_run(long, {"long": long, "nul": "a\0b"}, {"long": long, "test": "limits"}) as run:
        run.log_metrics({"test/accuracy_of/a|b\n": 0.5, f"test/{long}": 0.25}, 1)
        run.log_dataset(long, long, "training", {long: 3})
        run.log_note(long, None)
    assert sync(tmp_path)[1] == 0
    (found,) = (run for run in registry.find_finished() if run.tags.get("test") == "limits")
    assert found.name == limits.truncated(long, limits.NAME)
    assert found.params == {"long": limits.truncated(long, limits.PARAM), "nul": "a\ufffdb"}
    assert found.tags["long"] == found.tags["mlflow.note.content"] == limits.truncated(long, limits.TAG)
    assert found.metrics == {"test/accuracy_of/a_7c_b_a_": 0.5, f"test/{long}"[: limits.NAME]: 0.25}


def test_the_models_of_a_pipeline_and_their_champion_are_there(
    server: tuple[str, str], demo: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(demo.folder, folder, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".work", "src"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server[0])
    monkeypatch.setenv("DVC_ROOT", str(folder))
    shell = shell_in(folder, MLFLOW_TRACKING_URI=server[0], PATH=path_of_forks())
    restored = shell("leanresnet", "sync").stdout
    assert restored.endswith("3 restored by DVC, logged from their outputs\n")
    client, sqlite = MlflowClient(server[0]), runs_by_model(demo.folder)
    runs = by_model(client)
    for model in MODELS:
        run, same = runs[model], sqlite[model]
        assert (run.data.params, run.info.run_name) == (same.data.params, same.info.run_name)
        metrics = run.data.metrics
        assert {key: same.data.metrics[key] for key in metrics} == metrics
        assert {"speed/latency_ms", "speed/throughput"} <= metrics.keys()
        assert len(client.get_metric_history(run.info.run_id, "val/accuracy")) == EPOCHS
        kept = Path(client.download_artifacts(run.info.run_id, "checkpoint/model.safetensors", str(tmp_path)))
        assert kept.read_bytes() == (folder / f"models/{model}/model.safetensors").read_bytes()
    assert runs["student"].data.tags["teacher.run_id"] == runs["teacher"].info.run_id
    (crowned,) = register_champion(folder)
    assert register_champion(folder) == [crowned]
    version = client.get_model_version_by_alias("leanresnet-digits", "champion")
    assert crowned.startswith(f"leanresnet-digits version {version.version} @champion: run {version.run_id} ")
    assert version.description.rstrip().endswith("| sha256sum --check")
    whole = Path(client.download_artifacts(version.run_id, "champion/lineage.txt", str(tmp_path))).read_text()
    assert "optimizer:" in whole
    assert whole == lineage(version.run_id, folder) + "\n"


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
