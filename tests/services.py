"""The services of compose.yaml without containers: its own MLflow command, on Debian's PostgreSQL and an S3 server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import yaml
from conftest import outside_environment
from imports import ROOT
from waiting import PATIENCE, free_port

Server = subprocess.Popen[bytes]
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@contextmanager
def secrets() -> Iterator[Path]:
    """What team/secrets makes."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([ROOT / "team/secrets", Path(folder) / "secrets"], check=True)
        yield Path(folder) / "secrets"


@contextmanager
def postgres(password_file: Path) -> Iterator[str]:
    """A fresh server with the database and the user of compose.yaml; its address."""
    # It refuses to run as root, and another user can not enter root's folders.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    password = folder / "password"
    shutil.copy(password_file, password)
    try:
        if user:
            for path in (folder, password):
                shutil.chown(path, user, user)
        options = {"user": user, "group": user, "extra_groups": [] if user else None}
        make = [POSTGRES[-1] / "initdb", "--pgdata", folder / "data", "--username", "mlflow", "--pwfile", password]
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, **options}
        subprocess.run([*make, "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--no-sync"], **quiet)
        port = free_port()
        serve = [POSTGRES[-1] / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", ""]
        with process(serve, folder / "log", signal.SIGQUIT, **options) as server:
            where = {"host": "127.0.0.1", "port": port, "user": "mlflow", "password": password.read_text()}
            wait_until(server, lambda: psycopg2.connect(dbname="postgres", **where).close(), psycopg2.OperationalError)
            connection = psycopg2.connect(dbname="postgres", **where)
            connection.autocommit = True
            connection.cursor().execute("CREATE DATABASE mlflow")
            connection.close()
            yield f"127.0.0.1:{port}"
    finally:
        shutil.rmtree(folder)


def compose(service: str) -> dict[str, Any]:
    """A service of compose.yaml."""
    described: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][service]
    return described


@contextmanager
def s3(folder: Path, identities: Path) -> Iterator[str]:
    """nanio, which keeps objects as files and checks signatures, with the buckets and the keys of compose.yaml.

    To nanio each key opens every bucket, unlike to the store there.
    """
    (option,) = (word for word in compose("store")["command"] if word.startswith("-bucket="))
    for bucket in option.removeprefix("-bucket=").split(","):
        (folder / bucket).mkdir(parents=True)
    pairs = [each["credentials"][0] for each in json.loads(identities.read_text())["identities"]]
    users = [f'[[users]]\naccess_key = "{p["accessKey"]}"\nsecret_key = "{p["secretKey"]}"\n' for p in pairs]
    options = folder.with_suffix(".toml")
    options.write_text("".join(users))
    port = free_port()
    serve = [sys.executable, "-m", "nanio", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with process(
        [*serve, "--options", options, "--data-dir", folder, "--no-access-log"],
        folder.with_suffix(".log"),
        env=outside_environment(),
    ) as server:
        wait_until(server, lambda: socket.create_connection(("127.0.0.1", port)).close(), OSError)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def mlflow(folder: Path, made: Path, database: str, *options: str, **environment: str) -> Iterator[str]:
    """compose.yaml's service on `database`; its address. `options` overrule its own."""
    service = compose("mlflow")
    port = free_port()
    places = {"0.0.0.0": "127.0.0.1", "5000": str(port), "postgres:5432": database}  # noqa: S104
    command = [replaced(word, places) for word in (*service["entrypoint"], *service["command"])] + list(options)
    mounted = {name: value.replace("/run/secrets", str(made)) for name, value in service["environment"].items()}
    with process(command, folder / "mlflow.log", env=outside_environment(**(mounted | environment))) as server:
        address = f"http://127.0.0.1:{port}"
        wait_until(server, lambda: urllib.request.urlopen(f"{address}/health").close(), OSError)  # noqa: S310
        yield address


def replaced(text: str, places: dict[str, str]) -> str:
    for old, new in places.items():
        text = text.replace(old, new)
    return text


@contextmanager
def process(command: list[object], log: Path, end: int = signal.SIGKILL, **options: object) -> Iterator[Server]:
    """A server and its children, ended at once at the end: nothing of theirs is kept."""
    with log.open("w") as output:
        started = subprocess.Popen(
            [str(word) for word in command], stdout=output, stderr=output, start_new_session=True, **options
        )
    try:
        yield started
    except BaseException:
        print(log.read_text()[-4000:], file=sys.stderr)
        raise
    finally:
        # PostgreSQL ends its own children.
        (os.kill if end == signal.SIGQUIT else os.killpg)(started.pid, end)
        started.wait()


def wait_until(server: Server, ready: Callable[[], object], not_yet: type[Exception]) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            ready()
        except not_yet:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.1)
        else:
            return
