"""The running command again, in several processes of this machine: torchrun, with this project's exit codes."""

import logging
import os
import signal
import sys
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from leanresnet.compute.distributed import is_launched
from leanresnet.errors import LostProcessError


def launch(processes: int) -> None:
    """Run this very command in so many processes and exit as they do; in one of them, return at once."""
    if is_launched():
        return
    # All that this process would say repeats what the first of the others says.
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
        # By the file that this process runs: a module's name may be that of a folder here.
        elastic_launch(config, sys.executable)("-P", *sys.argv)
    except ChildFailedError as error:
        _leave([failure.exitcode for _, failure in sorted(error.failures.items())])
    except SignalException as error:
        sys.exit(128 + error.sigval)
    sys.exit(0)


def _leave(codes: list[int]) -> NoReturn:
    """With what ended the first process that was not merely left alone, or killed."""
    said = [code for code in codes if code > 0 and code != LostProcessError.exit_code]
    sys.exit(said[0] if said else LostProcessError.exit_code)
