"""When a training has to end: SIGTERM, SIGINT, or the death of the dvc that started it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

ORPHAN_CHECK_SECONDS = 1.0
_requests: list[Callable[[], signal.Signals | None]] = []


@contextmanager
def stop_requests() -> Iterator[Callable[[], signal.Signals | None]]:
    """Inside, signals end nothing; the function that it gives says which one came, and the training sees to it.

    A second SIGINT ends the process at once. A dvc that is killed takes no stage with it, so its death
    counts as a SIGTERM.
    """
    dvc = _starting_dvc()
    requested = signal.SIGTERM if dvc is None and _is_orphan() else None
    looked = time.monotonic()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested is not None and number == signal.SIGINT:
            os._exit(128 + number)
        requested = requested or signal.Signals(number)

    def request() -> signal.Signals | None:
        nonlocal requested, looked
        if requested is None and dvc is not None and time.monotonic() - looked >= ORPHAN_CHECK_SECONDS:
            looked = time.monotonic()
            requested = None if _alive(dvc) else signal.SIGTERM
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


def _starting_dvc() -> psutil.Process | None:
    """The dvc among this process's ancestors; the stage's shell may stand between them."""
    if "DVC_STAGE" not in os.environ:
        return None
    for ancestor in psutil.Process().parents():
        try:
            if "dvc" in [Path(part).name for part in ancestor.cmdline()[:3]]:
                return ancestor
        except psutil.Error:
            continue
    return None


def _is_orphan() -> bool:
    """Whether dvc had died before it was looked for."""
    return "DVC_STAGE" in os.environ and os.getppid() == 1


def _alive(process: psutil.Process) -> bool:
    # A dead process whose own parent has not asked for it yet is a zombie.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
