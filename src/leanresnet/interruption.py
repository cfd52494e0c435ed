"""When a training has to end: SIGTERM, SIGINT, or the death of the dvc or the torchrun that started it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil
import torch

ORPHAN_CHECK_SECONDS = 1.0
_requests: list[Callable[[], signal.Signals | None]] = []


@contextmanager
def stop_requests() -> Iterator[Callable[[], signal.Signals | None]]:
    """Inside, signals end nothing; the function that it gives says which one came, and the training sees to it.

    The compiler alone is interrupted, by KeyboardInterrupt: it may take a minute, and changes no state.
    A second SIGINT ends the process at once. A dvc that is killed takes no stage with it, and torchrun no
    worker, so their death counts as a SIGTERM.
    """
    starters = _starters()
    requested = signal.SIGTERM if not starters and _is_orphan() else None
    looked = time.monotonic()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested is not None and number == signal.SIGINT:
            os._exit(128 + number)
        requested = requested or signal.Signals(number)
        if torch.compiler.is_compiling():
            raise KeyboardInterrupt

    def request() -> signal.Signals | None:
        nonlocal requested, looked
        if requested is None and starters and time.monotonic() - looked >= ORPHAN_CHECK_SECONDS:
            looked = time.monotonic()
            requested = None if all(map(_alive, starters)) else signal.SIGTERM
        return requested

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    _requests.append(request)
    try:
        yield request
    finally:
        _requests.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


def requested_stop() -> signal.Signals | None:
    """For those who cannot be handed the function."""
    return _requests[-1]() if _requests else None


def _starters() -> list[psutil.Process]:
    """The dvc among this process's ancestors, where a shell may stand between them, and the torchrun above it."""
    found = []
    if "TORCHELASTIC_RUN_ID" in os.environ:
        found += psutil.Process().parents()[:1]
    if "DVC_STAGE" in os.environ:
        found += [each for each in psutil.Process().parents() if "dvc" in _names(each)][:1]
    return found


def _names(process: psutil.Process) -> list[str]:
    try:
        return [Path(part).name for part in process.cmdline()[:3]]
    except psutil.Error:
        return []


def _is_orphan() -> bool:
    """Whether dvc had died before it was looked for."""
    return "DVC_STAGE" in os.environ and os.getppid() == 1


def _alive(process: psutil.Process) -> bool:
    # A dead process whose own parent has not asked for it yet is a zombie.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
