"""Replacements of stdout and stderr that handle errors of writing, such as a closed pipe."""

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
    """The reader of stdout has closed it, as `head` does; SIGPIPE ends other programs in this case."""

    def __init__(self) -> None:
        super().__init__("stopped by SIGPIPE: nobody reads stdout", signal.SIGPIPE)


class _Output(io.FileIO):
    """stdout; it raises errors that are not OSError, so that click and callers do not handle them as their own."""

    def write(self, content: "bytes | memoryview") -> int:  # type: ignore[override]
        try:
            return super().write(content)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise NoReaderError from None
            raise StorageError(f"stdout: cannot be written ({error.strerror})") from None


class _Messages(io.FileIO):
    """stderr; errors of writing are ignored, such as those of a closed terminal."""

    def write(self, content: "bytes | memoryview") -> int:  # type: ignore[override]
        with suppress(OSError):
            super().write(content)
        return len(content)


def prepare_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr`.

    If stdin, stdout or stderr is closed, its file descriptor is opened on the null device, because the next file that
    is opened would get its number. Writing to a closed stdout is an error; writing to a closed stderr is not.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # `os.open` returns the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, mode), True)
    sys.stdout, sys.stderr = _stream(_Output, 1, sys.stdout), _stream(_Messages, 2, sys.stderr)


def _stream(kind: Callable[..., io.FileIO], number: int, before: TextIO | None) -> TextIO:
    raw = kind(number, "wb", closefd=False)
    encoding, errors = (before.encoding, before.errors) if before is not None else ("utf-8", "backslashreplace")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=True)
