"""When a training has to end: SIGTERM, SIGINT, SIGHUP, or the death of the dvc or the torchrun that started it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from leanresnet.errors import StoppedError

ORPHAN_CHECK_SECONDS = 1.0
_requests: list[Callable[[], signal.Signals | None]] = []
_compiling = False
_saves: list[Callable[[], None]] = []
_last_words: list[Callable[[], None]] = []


@contextmanager
def stop_requests() -> Iterator[Callable[[], signal.Signals | None]]:
    """Inside, signals end nothing; the function that it gives says which one came, and the training sees to it.

    A compilation alone is ended at once, and the process with it: see `compilation`. A second SIGINT ends the
    process too. A dvc that is killed takes no stage with it, and torchrun no worker, so their death counts as a
    SIGTERM. Where SIGHUP is ignored, as nohup has it, it stays so.
    """
    starters = _starters()
    requested = signal.SIGTERM if not starters and _is_orphan() else None
    looked = time.monotonic()
    process = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        second = requested is not None and number == signal.SIGINT
        # A process that was forked from this one inherits the handler, and has nothing to see to.
        if second or os.getpid() != process:
            os._exit(128 + number)
        requested = requested or signal.Signals(number)
        if _compiling:
            _end(_stopped(requested))

    def request() -> signal.Signals | None:
        nonlocal requested, looked
        if requested is None and starters and time.monotonic() - looked >= ORPHAN_CHECK_SECONDS:
            looked = time.monotonic()
            requested = None if all(map(_alive, starters)) else signal.SIGTERM
        return requested

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    _requests.append(request)
    try:
        yield request
    finally:
        _requests.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def compilation() -> Iterator[None]:
    """Inside, a signal ends the process at once, with what `at_a_sudden_end` names and one line on stderr.

    A compilation may take a minute, and no exception can be trusted to leave it: raised by a signal's handler, it
    may come up in a callback of C++ that lets none pass, and the process aborts. What `before_a_compilation` names
    is done first.

    Raises:
        StoppedError: by a signal that came before.
    """
    global _compiling
    stop = _requests[-1]() if _requests else None
    if stop is not None:
        raise _stopped(stop)
    for save in _saves:
        save()
    _compiling = True
    try:
        yield
    finally:
        _compiling = False


def before_a_compilation(save: Callable[[], None]) -> AbstractContextManager[None]:
    """Inside, `save` is called before each compilation, after which nothing could be saved any more."""
    return _held(save, _saves)


def at_a_sudden_end(say: Callable[[], None]) -> AbstractContextManager[None]:
    """Inside, `say` is called where a signal ends the process."""
    return _held(say, _last_words)


@contextmanager
def _held(call: Callable[[], None], calls: list[Callable[[], None]]) -> Iterator[None]:
    calls.append(call)
    try:
        yield
    finally:
        calls.remove(call)


def _stopped(stop: signal.Signals) -> StoppedError:
    return StoppedError(f"stopped by {stop.name} during torch.compile; the same command resumes", stop)


def _end(error: StoppedError) -> NoReturn:
    """Without unwinding: see `compilation`. The interrupted code may hold the lock of `sys.stderr`."""
    for say in reversed(_last_words):
        with suppress(Exception):
            say()
    # Of the processes of one training all end alike, and the first one says so.
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            os.write(2, f"error: {error}\n".encode())
    os._exit(error.exit_code)


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
