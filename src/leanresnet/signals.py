"""Requests to stop a training: SIGTERM, SIGINT, SIGHUP, or the death of the dvc or torchrun that started it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from leanresnet.errors import StoppedError, is_first_process

ORPHAN_CHECK_SECONDS = 1.0
_requests: list[Callable[[], signal.Signals | None]] = []
_compiling = False
_saves: list[Callable[[], None]] = []
_last_words: list[Callable[[], None]] = []


@contextmanager
def stop_requests() -> Iterator[Callable[[], signal.Signals | None]]:
    """Handle signals inside the block, so that they do not end the process but ask the training to stop.

    The context returns a function that returns the first signal that arrived, or None. Two kinds of signals still end
    the process at once: one during a `compilation`, and a second SIGINT. The death of dvc or torchrun counts as a
    SIGTERM, because it does not end the stages or workers that they started. SIGHUP stays ignored if it was ignored
    before, as under nohup.
    """
    starters = _starters()
    requested = signal.SIGTERM if not starters and _is_orphan() else None
    looked = time.monotonic()
    process = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        second = requested is not None and number == signal.SIGINT
        # A forked process inherits the handler but has no training to stop, so it ends.
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
    """Let a signal inside the block end the process at once, after the functions of `at_a_sudden_end`.

    A compilation may take a minute, so a signal does not wait for its end. A signal handler cannot end it by an
    exception either, because the exception may be raised in a C++ callback that does not pass it on, and then the
    process aborts. The functions of `before_a_compilation` are called before the block.

    Raises:
        StoppedError: if a signal arrived before the block.
    """
    global _compiling
    for save in _saves:
        save()
    _compiling = True
    try:
        stop = _requests[-1]() if _requests else None
        if stop is not None:
            raise _stopped(stop)
        yield
    finally:
        _compiling = False


def before_a_compilation(save: Callable[[], None]) -> AbstractContextManager[None]:
    """Call `save` before each compilation inside the block, because a signal during it ends the process at once."""
    return _held(save, _saves)


def at_a_sudden_end(say: Callable[[], None]) -> AbstractContextManager[None]:
    """Call `say` if a signal ends the process at once inside the block."""
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
    """End the process without raising an exception, see `compilation`.

    The message is written to the file descriptor, because the interrupted code may hold the lock of `sys.stderr`.
    """
    for say in reversed(_last_words):
        with suppress(Exception):
            say()
    # All processes of a training end with the same error.
    if is_first_process():
        with suppress(OSError):
            os.write(2, f"error: {error}\n".encode())
    os._exit(error.exit_code)


def _starters() -> list[psutil.Process]:
    """Return the torchrun that is the parent of this process and the dvc among its ancestors, as far as they exist."""
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
    """Return whether dvc had died before this process looked for it."""
    return "DVC_STAGE" in os.environ and os.getppid() == 1


def _alive(process: psutil.Process) -> bool:
    # A dead process is a zombie until its parent has collected its exit code.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
