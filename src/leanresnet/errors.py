"""The exceptions that a user can cause, each with its exit code.

LeanResNetError        1
├── ConfigError        2   a value in params.yaml, an option or the environment
├── DataError          3   an archive, a split or a download
├── DivergedError      4   a loss, a metric or a weight became NaN or infinite
├── StorageError       5   a file that cannot be read or written
├── SnapshotError      6   all snapshots of a stopped training are damaged
├── MemoryLimitError   7   a batch or a network that does not fit into memory
├── LostProcessError   8   one of several processes of a training ended early
└── StoppedError     130   stopped by SIGINT, 143 by SIGTERM, 129 by SIGHUP: 128 plus the signal's number

Only these exceptions are shown to the user, as one line. Internal invariants use `assert`.
"""

import importlib.util
import os
import re
import sys
from textwrap import shorten

from leanresnet.text import plain

# The longest reason that `cause` takes from the message of a library.
CAUSE_LENGTH = 200


class LeanResNetError(Exception):
    exit_code = 1


class ConfigError(LeanResNetError):
    exit_code = 2


class DataError(LeanResNetError):
    exit_code = 3


class DivergedError(LeanResNetError):
    exit_code = 4


class StorageError(LeanResNetError):
    exit_code = 5


class SnapshotError(LeanResNetError):
    exit_code = 6


class MemoryLimitError(LeanResNetError):
    exit_code = 7


class LostProcessError(LeanResNetError):
    exit_code = 8


class StoppedError(LeanResNetError):
    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


def require(extra: str, *modules: str) -> None:
    """Check that modules which an optional extra of this package installs can be imported.

    Args:
        extra: the name of the extra.
        modules: the modules, by name.

    Raises:
        ConfigError: if one of them is not installed.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{module}: not installed; `pip install 'leanresnet[{extra}]'` installs it")


def cause(error: BaseException) -> str:
    """Return why another program or machine did not answer, in a few words.

    It is the system's reason, such as ``[Errno 111] Connection refused``, which libraries put at the end of a long
    message, or else the beginning of the message, which may hold a whole page of a server.
    """
    if isinstance(error, LeanResNetError):
        return str(error)
    reason = shorten(str(error).partition("\n")[0], CAUSE_LENGTH, placeholder=" ...")
    inner = error.__cause__ or error.__context__
    while inner is not None:
        # A TimeoutError has no number. Errors of libraries, which have neither, repeat the message of the inner one.
        if isinstance(inner, TimeoutError) or getattr(inner, "errno", None) is not None:
            reason = str(inner)
        inner = inner.__cause__ or inner.__context__
    return reason


def is_first_process() -> bool:
    """Return whether this process is the first that torchrun started, or torchrun did not start it.

    Most errors are the same in all processes of a training, and the first one prints them. Other launchers set RANK as
    well, also for a program that is one process.
    """
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def redacted(text: object) -> str:
    """Return `text` as one line, with user, password and query removed from addresses."""
    line = plain(re.sub(r"\s*[\r\n]+\s*", " ", str(text).strip()))
    line = re.sub(r"(\w://)[^\s'\")?]*@", r"\1***@", line)
    return re.sub(r"(\w://[^\s?]*)\?[^\s'\")]*?(?=:?(?:[\s'\")]|$))", r"\1?***", line)


def warn(message: object) -> None:
    """Print a warning to stderr, as one line without credentials."""
    print(f"warning: {redacted(message)}", file=sys.stderr)
