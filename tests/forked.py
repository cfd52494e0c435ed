"""The program or dvc in a fork of a process that has imported what it needs, which spares up to 8 s of a core.

A fork has the environment, the folder, the streams, the signals and the end of a process of its own. It does not have
what an import decides, such as the number of OpenMP's threads; its parent is another one, so that a training does not
see the death of its dvc; the hash seed is the same in all forks; and dvc parses each of its files once a call.

The program itself is started by the tests of the wheel, which run each stage, of torchrun, of the death of dvc, of a
signal during a compilation, of limits of the system, and of the bytes that all others have to give (`Whole`).
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
from tempfile import TemporaryDirectory, gettempdir, mkdtemp

from environment import outside_environment

# The variable by which all processes of a test run know the folder of the clients and of the socket.
FOLDER = "FOLDER_OF_CLIENT"
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
received = fork.recv(100)
if not received:
    print("the process that forks has ended", file=sys.stderr)
    os._exit(70)
code = int(received)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def run_program(*arguments: str, cwd: Path, env: dict[str, str], first: str = "") -> subprocess.CompletedProcess[str]:
    """Run `leanresnet` with these arguments; `first` is Python code that the process runs first."""
    return _run(["leanresnet", *arguments], cwd, env, first)


def run_code(code: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python code; the modules of the tests can be imported."""
    return _run(["-c"], cwd, env, code)


def _run(command: Sequence[str], cwd: Path, env: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    with TemporaryDirectory() as folder, Path(os.devnull).open() as nothing, _new_socket() as fork:
        out, err = Path(folder, "out"), Path(folder, "err")
        fork.connect(str(folder_of_client() / "socket"))
        with out.open("w") as said, err.open("w") as warned:
            asked = json.dumps([command, str(cwd), env, code]).encode()
            socket.send_fds(fork, [asked], [stream.fileno() for stream in (nothing, said, warned)])
        exit_code = fork.recv(100)
        assert exit_code, "the process that forks has ended"
        return subprocess.CompletedProcess(command, int(exit_code), out.read_text(), err.read_text())


def path_of_forks() -> str:
    """A PATH on which `leanresnet` and `dvc` run in a fork."""
    return f"{folder_of_client() / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@cache
def folder_of_client() -> Path:
    """The folder of the clients and of the socket, which the first process of a test run makes for all of them."""
    if FOLDER in os.environ and Path(os.environ[FOLDER]).exists():
        return Path(os.environ[FOLDER])
    # The path of a socket has at most 107 bytes.
    folder = Path(mkdtemp(dir="/tmp" if len(gettempdir()) > 80 else None))  # noqa: S108
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
    """Start the process that forks at the first request. It ends with this process, whose end closes its stdin."""
    # The program disables telemetry before it imports MLflow. With threads, a process should not fork.
    environment = outside_environment(MLFLOW_DISABLE_TELEMETRY="true", OMP_NUM_THREADS="1")
    with listener:
        select.select([listener], [], [])
        command = [sys.executable, str(Path(__file__).with_name("forking.py")), str(listener.fileno())]
        streams = {"stdin": subprocess.PIPE, "pass_fds": [listener.fileno()]}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
    process.wait()
