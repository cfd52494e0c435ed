"""The process that `forked` asks for forks: it imports what the program needs, and forks itself for each request.

It has one thread, since a fork of a process with several may wait for a lock that nobody holds any more.
"""
# ruff: noqa: F401

import gc
import json
import os
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import dvc.cli.parser
import dvc.data_cloud
import dvc.dvcfile
import dvc.repo.experiments
import dvc.repo.index
import dvc.repo.plots
import dvc.repo.reproduce
import dvc.rwlock
import dvc.stage.loader
import dvc.utils.strictyaml
import dvc_data.hashfile.build
import dvc_data.hashfile.db.local
import dvc_data.index
import fsspec.implementations.memory
import mlflow.pytorch
import mlflow.store.tracking.sqlalchemy_store
import networkx
import numpy
import sklearn.model_selection
import torch._dynamo
import variables
from mlflow.utils import requirements_utils
from parsing import load_once
from ruamel.yaml import YAML
from torch._inductor.runtime.cache_dir_utils import cache_dir

import leanresnet.data.division
import leanresnet.evaluation.report
import leanresnet.jobs.train_job


class _Fork:
    """A fork and the client that asked for it, which gets its exit code."""

    def __init__(self, listener: socket.socket) -> None:
        self.client = client = listener.accept()[0]
        asked, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
        self.pid = os.fork()
        if self.pid == 0:
            # A client must find nobody to listen when the process that forks has ended.
            listener.close()
            _serve(asked, streams)
        with suppress(OSError):
            # The fork does it too; whoever is first.
            os.setpgid(self.pid, self.pid)
        for stream in streams:
            os.close(stream)
        self.ended = os.pidfd_open(self.pid)

    def hand_on(self) -> bool:
        """Send the fork the signal that the client got; without a client, kill it and return False."""
        number = self.client.recv(100)
        if number:
            os.kill(self.pid, int(number))
        else:
            self.kill()
        return bool(number)

    def kill(self) -> None:
        """Kill the fork and what it started: a dvc's stage is a client, whose fork is killed by this function then."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def finish(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.ended)
        with self.client, suppress(BrokenPipeError, ConnectionResetError):
            # With a signal left unread, the client would get an error instead of the exit code.
            with suppress(BlockingIOError):
                while self.client.recv(100, socket.MSG_DONTWAIT):
                    pass
            self.client.send(b"%d" % os.waitstatus_to_exitcode(status))


def fork_for_all(listener: socket.socket) -> None:
    """Fork for each client, until stdin is closed."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            # Handle one event at a time, because handling it may make another one void.
            key, _ = selector.select()[0]
            if key.fileobj == 0:
                for each in {registered.data for registered in selector.get_map().values()} - {None}:
                    each.kill()
                return
            fork = key.data
            if fork is None:
                fork = _Fork(listener)
                selector.register(fork.client, selectors.EVENT_READ, fork)
                selector.register(fork.ended, selectors.EVENT_READ, fork)
            elif key.fileobj == fork.ended:
                selector.unregister(fork.ended)
                if fork.client in selector.get_map():
                    selector.unregister(fork.client)
                fork.finish()
            elif not fork.hand_on():
                selector.unregister(fork.client)


def _serve(asked: bytes, streams: Sequence[int]) -> NoReturn:
    exit_code: object = 1
    try:
        command, cwd, env, code = json.loads(asked)
        os.setpgid(0, 0)
        # Each process has random numbers of its own, where no seed is set.
        numpy.random.seed()
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        if paths := [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]:
            # Another checkout has code of its own.
            sys.path[:0] = paths
            for name in [name for name in sys.modules if name.partition(".")[0] in ("leanresnet", "pipeline")]:
                del sys.modules[name]
        sys.argv = list(command)
        # The import of torch._dynamo sets an environment variable.
        cache_dir()
        variables.refuse_new()
        exec(code, {"__name__": "__main__"})  # noqa: S102
        exit_code = _run(command)
    except SystemExit as end:
        exit_code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code if isinstance(exit_code, int) else int(exit_code is not None))


def _run(command: Sequence[str]) -> int:
    match Path(command[0]).name:
        case "leanresnet":
            # Imported here, because another checkout's may be meant, not the one that is imported above.
            from leanresnet.__main__ import main

            main()
        case "dvc":
            YAML.load = load_once()  # type: ignore[method-assign]
            return dvc.cli.main(command[1:])
    return 0


if __name__ == "__main__":
    # At the first model that a process logs, MLflow searches all installed packages, for a second.
    requirements_utils._init_modules_to_packages_map()
    # What was imported stays, so the garbage collector need not look through it.
    gc.freeze()
    assert threading.active_count() == 1, "a process with threads should not fork"
    fork_for_all(socket.socket(fileno=int(sys.argv[1])))
    # The usual end of an interpreter would collect what is frozen.
    os._exit(0)
