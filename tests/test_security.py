"""What must not leak, and who must not come in."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import outside_environment
from test_resume import COMMAND, prepare

from leanresnet.errors import redacted

SECRETS = {name: f"{name}-5ecr3t-0f-7ests" for name in ("environment", "remote", "tracking", "params", "command")}


def where(secret: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_five_planted_secrets_are_found_in_no_database_artifact_or_log(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["download"]["mirrors"] = [
        f"https://ann:{SECRETS['params']}@example.org/cifar.tar.gz?key={SECRETS['params']}"
    ]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    remote = f"https://ann:{SECRETS['remote']}@example.org/repository.git"
    for command in (["git", "init", "--quiet"], ["git", "remote", "add", "origin", remote]):
        subprocess.run(command, cwd=folder, check=True)
    printed = ""
    # A server that refuses, then the workspace's own database, which gets both runs.
    for uri in (f"http://ann:{SECRETS['tracking']}@127.0.0.1:9", ""):
        environment = outside_environment(
            MLFLOW_TRACKING_URI=uri, AWS_SECRET_ACCESS_KEY=SECRETS["environment"], OMP_NUM_THREADS="1"
        )
        for extra in (["--params", f"no/{SECRETS['command']}"], [f"--token={SECRETS['command']}"], []):
            done = subprocess.run([*COMMAND, *extra], cwd=folder, env=environment, capture_output=True, text=True)
            # What a person typed is shown back to him, and to nobody else.
            printed += "" if extra else done.stdout + done.stderr
            assert (done.returncode == 0) == (not extra), done.stderr
    assert "warning: MLflow has not got all of this run" in printed
    assert (folder / "mlflow.db").exists()
    for name, secret in SECRETS.items():
        assert secret not in printed, name
        planted = (
            {folder / "params.yaml"} if name == "params" else {folder / ".git/config"} if name == "remote" else set()
        )
        assert set(where(secret, folder)) == planted, name


def test_an_address_in_a_message_keeps_its_secrets() -> None:
    text = "http://ann:pw@host:5000/api?token=abc failed\n(see 'https://a.example/c?k=v')"
    assert redacted(text) == "http://***@host:5000/api?*** failed (see 'https://a.example/c?***')"
    assert redacted("a = 'b', accepted: c? d@e") == "a = 'b', accepted: c? d@e"


@contextmanager
def ui(folder: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "ui", "--port", str(port)],
        cwd=folder,
        env=outside_environment(PYTHONPATH=str(Path(__file__).parent.parent)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 60
        while not reachable("127.0.0.1", port):
            assert time.monotonic() < end
            time.sleep(0.1)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def asked(port: int, method: str, path: str, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers=headers, body="{}" if method == "POST" else None)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_ui_serves_this_machine_alone_and_no_foreign_page(tmp_path: Path) -> None:
    """A page elsewhere could otherwise ask the browser to read or change the runs (DNS rebinding, CSRF)."""
    search = "/api/2.0/mlflow/experiments/search"
    with ui(tmp_path) as port:
        assert asked(port, "GET", f"{search}?max_results=1", Host=f"127.0.0.1:{port}") == 200
        assert asked(port, "GET", f"{search}?max_results=1", Host="evil.example") == 403
        json_type = {"Content-Type": "application/json"}
        assert asked(port, "POST", search, Origin="https://evil.example", **json_type) == 403
        assert [address for address in others() if reachable(address, port)] == []


def others() -> list[str]:
    """This machine's addresses but the loopback ones."""
    entries = [entry for interface in psutil.net_if_addrs().values() for entry in interface]
    found = [entry.address for entry in entries if entry.family == socket.AF_INET]
    return [address for address in found if not address.startswith("127.")]


def reachable(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


@pytest.mark.parametrize(
    "text", ["pickle.load(file)", "torch.load(path)", "yaml.load(text)", "torch.load(f, weights_only=False)"]
)
def test_the_search_for_loaders_that_run_code_finds_them(text: str) -> None:
    from test_structure import RUNS_CODE

    assert RUNS_CODE.search(text)
    assert not RUNS_CODE.search("torch.load(f, weights_only=True); yaml.safe_load(text)")
