"""Every mistake a user can make, as one exception and one exit code.

LeanResNetError        1
├── ConfigError        2   a value in params.yaml, an option or the environment
├── DataError          3   an archive, a split or a download
├── DivergedError      4   the loss became NaN or infinite
└── StorageError       5   a file that cannot be read or written

Internal invariants use `assert`; only these reach the user, as one line.
"""


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
