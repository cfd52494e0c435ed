"""The program or dvc in a fork of a process that has imported what it needs, which spares up to 8 s of a core.

Everything after the imports is as in a process of its own: its environment, its folder, its streams, its signals and
its end. What is decided at an import is not: the number of OpenMP's threads. Tests of this, of signals and of torchrun
start the program itself, and so does the test of the wheel, for each stage.
"""

import atexit
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

# The variable that names the folder of the client and of the socket to all processes of a test run.
FOLDER = "FOLDER_OF_FORKS"
# What a shell finds as `leanresnet` or `dvc`. It hands its signals on; one that ends it ends the fork as well.
_CLIENT = """#!{python} -ISE
import json, os, signal, socket, sys
paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if os.environ.get("OMP_NUM_THREADS") != "1" or any(os.path.exists(path + "/sitecustomize.py") for path in paths):
    os.execv("{program}", ["{program}", *sys.argv[1:]])
fork = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
fork.connect("{address}")
asked = [["{program}", *sys.argv[1:]], os.getcwd(), dict(os.environ), ""]
socket.send_fds(fork, [json.dumps(asked).encode()], [0, 1, 2])
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, frame: fork.send(b"%d" % number))
code = int(fork.recv(100) or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def run_program(*arguments: str, cwd: Path, env: dict[str, str], first: str = "") -> subprocess.CompletedProcess[str]:
    """Run `leanresnet` with these arguments; `first` is Python code that the process runs first."""
    return _run(["leanresnet", *arguments], cwd, env, first)


def run_code(code: str, *arguments: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python code, as `python -c` does."""
    return _run(["-c", *arguments], cwd, env, code)


def _run(command: Sequence[str], cwd: Path, env: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    with TemporaryDirectory() as folder, Path(os.devnull).open() as nothing, _new_socket() as fork:
        out, err = Path(folder, "out"), Path(folder, "err")
        fork.connect(str(folder_of_forks() / "socket"))
        with out.open("w") as said, err.open("w") as warned:
            asked = json.dumps([command, str(cwd), env, code]).encode()
            socket.send_fds(fork, [asked], [stream.fileno() for stream in (nothing, said, warned)])
        exit_code = int(fork.recv(100))
        return subprocess.CompletedProcess(command, exit_code, out.read_text(), err.read_text())


def path_of_forks() -> str:
    """A PATH on which `leanresnet` and `dvc` run in a fork."""
    return f"{folder_of_forks() / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@cache
def folder_of_forks() -> Path:
    """The folder of the client and of the socket, which the first process of a test run makes for all of them."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    listener = _new_socket()
    listener.bind(str(folder / "socket"))
    listener.listen()
    threading.Thread(target=_start_when_needed, args=(listener,), daemon=True).start()
    (folder / "bin").mkdir()
    for name in ("leanresnet", "dvc"):
        client, program = folder / "bin" / name, Path(sys.executable).with_name(name)
        client.write_text(_CLIENT.format(python=sys.executable, program=program, address=folder / "socket"))
        client.chmod(0o755)
    os.environ[FOLDER] = str(folder)
    return folder


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _start_when_needed(listener: socket.socket) -> None:
    """Start the process that forks, which ends with this one because that closes its stdin."""
    # The program sets it before it imports MLflow.
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with listener:
        select.select([listener], [], [])
        command = [sys.executable, str(Path(__file__).with_name("forking.py")), str(listener.fileno())]
        streams = {"stdin": subprocess.PIPE, "pass_fds": [listener.fileno()]}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
    process.wait()
