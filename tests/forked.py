"""The program in a fork of a process that has imported what it needs, which spares each about three seconds of a core.

Everything after the imports is as in a process of its own: its environment, its folder, its streams, its signals and
its end. What is decided at an import is not: the number of OpenMP's threads and the code of the package. Tests of
these, of dvc and of torchrun start the program itself.
"""

import multiprocessing
import os
import subprocess
import sys
import threading
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_IMPORTS = ["leanresnet.jobs.train_job", "torch._dynamo", "mlflow.pytorch", "mlflow.store.tracking.sqlalchemy_store"]


def run_program(*arguments: str, cwd: Path, env: dict[str, str], first: str = "") -> subprocess.CompletedProcess[str]:
    """Run `leanresnet` with these arguments; `first` is Python code that the process runs first."""
    with TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("out", "err")]
        process = _warm().Process(target=_serve, args=(arguments, cwd, env, first, streams))
        process.start()
        process.join()
        assert process.exitcode is not None
        out, err = (stream.read_text() for stream in streams)
    return subprocess.CompletedProcess(["leanresnet", *arguments], process.exitcode, out, err)


@cache
def _warm() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTS)
    with pytest.MonkeyPatch.context() as patch:
        # The program sets it before it imports MLflow.
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        forkserver.ensure_running()
    return context


def _serve(arguments: tuple[str, ...], cwd: Path, env: dict[str, str], first: str, streams: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for descriptor, stream in enumerate(streams, start=1):
        file = os.open(stream, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["leanresnet", *arguments]
    # As in a process that was not forked; otherwise the locks of progress bars are reported as leaked.
    multiprocessing.set_start_method("fork", force=True)
    # The import of torch._dynamo sets an environment variable.
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    cache_dir()
    sys.addaudithook(_refuse_new_variables)
    exec(first, {})  # noqa: S102
    from leanresnet.__main__ import main

    main()


def _refuse_new_variables(event: str, arguments: tuple[object, ...]) -> None:
    """A thread that adds an environment variable can end the process, see `connection.set_environment`."""
    if event == "os.putenv" and threading.current_thread() is not threading.main_thread():
        name = os.fsdecode(arguments[0])
        assert name in os.environ, f"a thread added {name} to the environment"
