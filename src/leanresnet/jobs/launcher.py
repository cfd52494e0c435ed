"""The launch of the running command in several processes of this machine, by torchrun's API."""

import logging
import os
import signal
import sys
from collections.abc import Mapping
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from leanresnet.compute.distributed import ENDED_EARLY, RESUMES, is_launched
from leanresnet.errors import LostProcessError


def launch(processes: int) -> None:
    """Run the current command again in `processes` processes, wait for them, and exit with their exit code.

    In a process that was launched this way, the function returns at once.
    """
    if is_launched():
        return
    # This process would only repeat the messages of the first launched process.
    logging.disable()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    signals = "SIGTERM,SIGINT,SIGQUIT"
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals += ",SIGHUP"
    config = LaunchConfig(
        run_id=str(os.getpid()),
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        signals_to_handle=signals,
    )
    try:
        # Run the same file as this process: the name of a module may also be that of a folder in the workspace.
        elastic_launch(config, sys.executable)("-P", *sys.argv)
    except ChildFailedError as error:
        _leave(error.failures)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    sys.exit(0)


def _leave(failures: Mapping[int, ProcessFailure]) -> NoReturn:
    """Exit with the exit code of the process that caused the failure of the training, and print its error.

    A process that ended because another one failed has the code of LostProcessError, or a negative code, which means a
    signal. These are not causes. Of the other processes, that of the lowest rank counts; without any, this process
    exits with the code of LostProcessError. The process of rank 0 prints its error itself, unless a signal ends it.

    Args:
        failures: the failed processes by rank.
    """
    for rank, failure in sorted(failures.items()):
        if failure.exitcode > 0 and failure.exitcode != LostProcessError.exit_code:
            if rank > 0 and failure.message.startswith("error: "):
                print(failure.message, file=sys.stderr)
            sys.exit(failure.exitcode)
    if 0 in failures and failures[0].exitcode < 0:
        # torchrun ends the others by SIGTERM.
        numbers = [-failure.exitcode for failure in failures.values() if failure.exitcode < 0]
        first = next((number for number in numbers if number != signal.SIGTERM), numbers[0])
        print(f"error: {ENDED_EARLY} (by {signal.Signals(first).name}); {RESUMES}", file=sys.stderr)
    sys.exit(LostProcessError.exit_code)
