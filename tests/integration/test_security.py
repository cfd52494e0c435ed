"""What must not leak, and who must not come in."""

import http.client
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import outside_environment
from databases import place_database
from forked import run_program
from imports import ROOT
from test_resume import COMMAND, prepare
from waiting import PATIENCE, free_port, wait_for

from leanresnet.errors import redacted
from leanresnet.tracking.connection import connect

SECRETS = {name: f"{name}-5ecr3t-0f-7ests" for name in ("environment", "remote", "tracking", "params", "command")}


def where(secret: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_five_planted_secrets_are_found_in_no_database_artifact_or_log(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "space")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["download"]["mirrors"] = [
        f"https://ann:{SECRETS['params']}@example.org/cifar.tar.gz?key={SECRETS['params']}"
    ]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    # On the command line of the runs that train, too.
    other = tmp_path / SECRETS["command"] / "params.yaml"
    other.parent.mkdir()
    other.symlink_to(folder / "params.yaml")
    remote = f"https://ann:{SECRETS['remote']}@example.org/repository.git"
    for command in (["git", "init", "--quiet"], ["git", "remote", "add", "origin", remote]):
        subprocess.run(command, cwd=folder, check=True)
    printed = ""
    # A server that refuses, then the workspace's own database, which gets both runs.
    for uri in (f"http://ann:{SECRETS['tracking']}@127.0.0.1:9", ""):
        environment = outside_environment(
            MLFLOW_TRACKING_URI=uri, AWS_SECRET_ACCESS_KEY=SECRETS["environment"], OMP_NUM_THREADS="1"
        )
        for extra in (["--params", str(other)], [f"--token={SECRETS['command']}"]):
            done = run_program(*COMMAND[1:], *extra, cwd=folder, env=environment)
            trains = extra[0] == "--params"
            # An option that is wrong is shown back to the person who typed it, and to nobody else.
            printed += done.stdout + done.stderr if trains else ""
            assert (done.returncode == 0) == trains, done.stderr
    # On a busy machine MLflow may not have got the second run yet.
    done = run_program("sync", cwd=folder, env=environment)
    printed += done.stdout + done.stderr
    assert "warning: MLflow has not received all of this run" in printed
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
    assert redacted("http://ann:p@ss/word@host:5000/api") == "http://***@host:5000/api"
    assert redacted("a = 'b', expected: c? d@e") == "a = 'b', expected: c? d@e"


@contextmanager
def ui(folder: Path) -> Iterator[tuple[int, int]]:
    """Its port and its process, as soon as it has printed the addresses of the page."""
    port = free_port()
    printed = folder / "printed.txt"
    with printed.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "ui", "--port", str(port)],
            cwd=folder,
            env=outside_environment(PYTHONPATH=str(ROOT)),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: f"http://127.0.0.1:{port}/#/" in printed.read_text() or process.poll() is not None)
        yield port, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)


def asked(port: int, method: str, path: str, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, headers=headers, body="{}" if method == "POST" else None)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_ui_serves_this_machine_alone_and_no_foreign_page(tmp_path: Path) -> None:
    """A page elsewhere could otherwise ask the browser to read or change the runs (DNS rebinding, CSRF)."""
    search = "/api/2.0/mlflow/experiments/search"
    (tmp_path / "params.yaml").touch()
    place_database(tmp_path)
    with ui(tmp_path) as (port, process):
        assert asked(port, "GET", "/") == 200
        assert "Warning" not in (tmp_path / "printed.txt").read_text()
        environment = psutil.Process(process).environ()
        assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
        assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
        # An address may have a password, and other users see the arguments of a process.
        assert str(tmp_path / "mlflow.db") not in " ".join(psutil.Process(process).cmdline())
        assert asked(port, "GET", f"{search}?max_results=1", Host=f"127.0.0.1:{port}") == 200
        assert asked(port, "GET", f"{search}?max_results=1", Host="evil.example") == 403
        json_type = {"Content-Type": "application/json"}
        assert asked(port, "POST", search, Origin="https://evil.example", **json_type) == 403
        assert [address for address in others() if reachable(address, port)] == []


class Armed:
    """A model whose pickle makes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")
def test_mlflow_loads_no_pickled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").touch()
    place_database(tmp_path)
    mlflow = connect()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/python_model.pkl").write_bytes(pickle.dumps(Armed(tmp_path / "ran")))
    (tmp_path / "model/MLmodel").write_text(
        "flavors: {python_function: {loader_module: mlflow.pyfunc.model, python_model: python_model.pkl,"
        " cloudpickle_version: 3.0.0}}"
    )
    with pytest.raises(mlflow.MlflowException, match="Deserializing model using pickle is disallowed"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    with suppress(Exception):  # the pickle is armed: MLflow would have run it
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert (tmp_path / "ran").exists()


def others() -> list[str]:
    """This machine's addresses but 127.0.0.1. Linux takes 127.0.0.2 to a server that listens to all addresses."""
    entries = [entry for interface in psutil.net_if_addrs().values() for entry in interface]
    found = [entry.address for entry in entries if entry.family == socket.AF_INET]
    return ["127.0.0.2", *(address for address in found if not address.startswith("127."))]


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
