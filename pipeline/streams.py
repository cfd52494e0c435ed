"""What the program prints, where nobody reads it or it cannot be written."""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from leanresnet.errors import StoppedError, StorageError


class NoReaderError(StoppedError):
    """The reader of stdout has gone, as `head` does; what ends a program by SIGPIPE elsewhere."""

    def __init__(self) -> None:
        super().__init__("stopped by SIGPIPE: nobody reads stdout", signal.SIGPIPE)


class _Output(io.FileIO):
    """stdout. An error of it is none that click, or whoever prints, would take for one of its own."""

    def write(self, content: "bytes | memoryview") -> int:  # type: ignore[override]
        try:
            return super().write(content)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise NoReaderError from None
            raise StorageError(f"stdout: cannot be written ({error.strerror})") from None


class _Messages(io.FileIO):
    """stderr. A message that nobody gets, as of a terminal that was closed, costs nothing."""

    def write(self, content: "bytes | memoryview") -> int:  # type: ignore[override]
        with suppress(OSError):
            super().write(content)
        return len(content)


def prepare_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr`; where one is closed, hold its number, which the next file would get.

    A stdout that is closed cannot be written, which is said where something is; a stderr that is closed is silent.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.set_inheritable(os.open(os.devnull, mode), True)
    sys.stdout, sys.stderr = _stream(_Output, 1, sys.stdout), _stream(_Messages, 2, sys.stderr)


def _stream(kind: Callable[..., io.FileIO], number: int, before: TextIO | None) -> TextIO:
    raw = kind(number, "wb", closefd=False)
    encoding, errors = (before.encoding, before.errors) if before is not None else ("utf-8", "backslashreplace")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=True)
