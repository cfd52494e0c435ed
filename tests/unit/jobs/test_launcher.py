"""The launch of several processes: what each gets, and whose end counts."""

import os
from collections.abc import Callable

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.launcher.api import LaunchConfig

from leanresnet.compute.distributed import ENDED_EARLY, RESUMES
from leanresnet.jobs import launcher


def failure(code: int, message: str = "") -> ProcessFailure:
    failed = ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="none")
    failed.message = message
    return failed


@pytest.mark.parametrize(
    ("failures", "code", "printed"),
    [
        ({0: failure(2, "error: the first"), 1: failure(3, "error: the second")}, 2, ""),
        ({0: failure(8), 1: failure(3, "error: the second"), 2: failure(4, "error: x")}, 3, "error: the second\n"),
        ({0: failure(-9), 1: failure(3, "not a line of ours")}, 3, ""),
        ({0: failure(8), 1: failure(-9)}, 8, ""),
        ({0: failure(-9), 1: failure(8)}, 8, f"error: {ENDED_EARLY} (by SIGKILL); {RESUMES}\n"),
        ({0: failure(-15), 1: failure(-9)}, 8, f"error: {ENDED_EARLY} (by SIGKILL); {RESUMES}\n"),
        ({0: failure(-15), 1: failure(8)}, 8, f"error: {ENDED_EARLY} (by SIGTERM); {RESUMES}\n"),
        ({0: failure(-11)}, 8, f"error: {ENDED_EARLY} (by SIGSEGV); {RESUMES}\n"),
    ],
)
def test_the_first_process_that_failed_by_itself_decides(
    failures: dict[int, ProcessFailure], code: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process of rank 0 has printed its own error, if no signal ended it."""
    with pytest.raises(SystemExit) as left:
        launcher._leave(failures)
    assert (left.value.code, capsys.readouterr().err) == (code, printed)


@pytest.mark.parametrize(
    ("processes", "threads", "given", "each"), [(2, 8, None, "4"), (3, 2, None, "1"), (2, 8, "7", "7")]
)
def test_processes_share_the_threads(
    processes: int, threads: int, given: str | None, each: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def elastic_launch(config: LaunchConfig, program: str) -> Callable[..., None]:
        return lambda *arguments: seen.extend([config.nproc_per_node, os.environ["OMP_NUM_THREADS"]])

    # It is set first, so that what `launch` sets is undone.
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(launcher, "elastic_launch", elastic_launch)
    monkeypatch.setattr(launcher.logging, "disable", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with pytest.raises(SystemExit) as left:
        launcher.launch(processes)
    assert (left.value.code, seen) == (0, [processes, each])
