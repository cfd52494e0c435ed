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

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        asked, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
        self.pid = os.fork()
        if self.pid == 0:
            _serve(*json.loads(asked), streams)
        for stream in streams:
            os.close(stream)
        self.ended = os.pidfd_open(self.pid)

    def hand_on(self) -> bool:
        """Send the fork the signal that the client got; without a client, send SIGKILL and return False."""
        number = self.client.recv(100)
        os.kill(self.pid, int(number or signal.SIGKILL))
        return bool(number)

    def finish(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.ended)
        with self.client, suppress(BrokenPipeError):
            self.client.send(b"%d" % os.waitstatus_to_exitcode(status))


def fork_for_all(listener: socket.socket) -> None:
    """Fork for each client, until stdin is closed."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            # One at a time, because what is done for it may end the reason for another one.
            key, _ = selector.select()[0]
            fork = key.data
            if key.fileobj == 0:
                return
            if fork is None:
                fork = _Fork(listener.accept()[0])
                selector.register(fork.client, selectors.EVENT_READ, fork)
                selector.register(fork.ended, selectors.EVENT_READ, fork)
            elif key.fileobj == fork.ended:
                selector.unregister(fork.ended)
                if fork.client in selector.get_map():
                    selector.unregister(fork.client)
                fork.finish()
            elif not fork.hand_on():
                selector.unregister(fork.client)


def _serve(command: Sequence[str], cwd: str, env: dict[str, str], code: str, streams: Sequence[int]) -> NoReturn:
    try:
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
        exit_code = 0
        match Path(command[0]).name:
            case "leanresnet":
                # Not that of above, which may be another checkout's.
                from leanresnet.__main__ import main

                main()
            case "dvc":
                YAML.load = load_once()  # type: ignore[method-assign]
                exit_code = dvc.cli.main(command[1:])
        sys.stdout.flush()
        os._exit(exit_code)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    # At the first model that a process logs, MLflow searches all installed packages, for a second.
    requirements_utils._init_modules_to_packages_map()
    # What was imported stays, so the garbage collector need not look through it.
    gc.freeze()
    fork_for_all(socket.socket(fileno=int(sys.argv[1])))
    # Without the collection of what is frozen.
    os._exit(0)
