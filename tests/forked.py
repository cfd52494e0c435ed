"""The program in a fork of a process that has imported what it needs, which spares each up to eight seconds of a core.

Everything after the imports is as in a process of its own: its environment, its folder, its streams, its signals and
its end. What is decided at an import is not: the number of OpenMP's threads. Tests of this and of torchrun start the
program itself, and so does the first `dvc repro` of the tests' checkout.
"""

import gc
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from multiprocessing import connection, forkserver, reduction
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import pytest
import variables

# What a shell or dvc finds as `leanresnet`. It hands its signals on; one that ends it ends the fork as well.
_CLIENT = """#!{python} -ISE
import json, os, signal, socket, sys
paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if os.environ.get("OMP_NUM_THREADS") != "1" or any(os.path.exists(path + "/sitecustomize.py") for path in paths):
    os.execv("{program}", ["{program}", *sys.argv[1:]])
fork = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
fork.connect("{address}")
socket.send_fds(fork, [json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()], [0, 1, 2])
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
    with TemporaryDirectory() as folder, Path(os.devnull).open() as nothing:
        out, err = Path(folder, "out"), Path(folder, "err")
        with out.open("w") as said, err.open("w") as warned:
            streams = [stream.fileno() for stream in (nothing, said, warned)]
            process = _start(arguments, str(cwd), env, first, streams)
        process.join()
        assert process.exitcode is not None
        texts = out.read_text(), err.read_text()
    return subprocess.CompletedProcess(["leanresnet", *arguments], process.exitcode, *texts)


def path_of_forks() -> str:
    """A PATH on which `leanresnet` runs in a fork, for a shell or a dvc that starts it."""
    return f"{_folder_of_client()}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@cache
def _folder_of_client() -> Path:
    folder = Path(mkdtemp())
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "socket"))
    listener.listen()
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    client = folder / "bin" / "leanresnet"
    client.parent.mkdir()
    program = Path(sys.executable).with_name("leanresnet")
    client.write_text(_CLIENT.format(python=sys.executable, program=program, address=folder / "socket"))
    client.chmod(0o755)
    return client.parent


def _accept(listener: socket.socket) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_run_for, args=(client,), daemon=True).start()


def _run_for(client: socket.socket) -> None:
    """Run what a client asks for; `client` gets the exit code."""
    with client:
        asked, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
        arguments, cwd, env = json.loads(asked)
        process = _start(arguments, cwd, env, "", streams)
        for stream in streams:
            os.close(stream)
        while process.sentinel not in connection.wait([client, process.sentinel]):
            number = int(client.recv(100) or signal.SIGKILL)
            assert process.pid is not None
            os.kill(process.pid, number)
        process.join()
        client.send(b"%d" % process.exitcode)


def _start(
    arguments: Sequence[str], cwd: str, env: dict[str, str], first: str, streams: Sequence[int]
) -> ForkServerProcess:
    process = _warm().Process(target=_serve, args=(arguments, cwd, env, first, *map(_Descriptor, streams)))
    process.start()
    return process


class _Descriptor:
    """A file descriptor, which is another number in another process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.number),)


def _received(descriptor: Any) -> _Descriptor:
    return _Descriptor(descriptor.detach())


@cache
def _warm() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        # The program sets it before it imports MLflow.
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        # A module that is not found is passed over in silence, and Python 3.11 looks where a new process would.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        forkserver.ensure_running()
    return context


def _serve(arguments: Sequence[str], cwd: str, env: dict[str, str], first: str, *streams: _Descriptor) -> None:
    assert "preloaded" in sys.modules
    # What was imported stays, so the garbage collector need not look through it.
    gc.freeze()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, stream in enumerate(streams):
        os.dup2(stream.number, number)
        os.close(stream.number)
    if paths := [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]:
        # Another checkout has code of its own.
        sys.path[:0] = paths
        for name in [name for name in sys.modules if name.partition(".")[0] in ("leanresnet", "pipeline")]:
            del sys.modules[name]
    sys.argv = [str(Path(sys.executable).with_name("leanresnet")), *arguments]
    # As in a process that was not forked; otherwise the locks of progress bars are reported as leaked.
    multiprocessing.set_start_method("fork", force=True)
    # The import of torch._dynamo sets an environment variable.
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    cache_dir()
    variables.refuse_new()
    exec(first, {})  # noqa: S102
    from leanresnet.__main__ import main

    main()
