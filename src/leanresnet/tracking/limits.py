"""The limits of names and texts in MLflow's database, and functions that make values fit them.

Columns of a server's database have a width, which sqlite does not enforce. tests/unit/tracking/test_limits.py compares
the numbers with MLflow's own tables and checks.
"""

import re
from collections.abc import Mapping

NAME = 250  # of a run, and of a tag, a param and a metric
PARAM = 6_000
TAG = 8_000
DESCRIPTION = 5_000  # of a version of a registered model
DATASET_NAME, DATASET_DIGEST = 500, 36
CUT = " [cut]"


def truncated(value: object, length: int) -> str:
    """Return `value` as text of at most `length` characters; a longer text is cut and marked with `CUT`.

    NUL, which PostgreSQL does not store, and lone surrogates, which no database stores, are replaced by U+FFFD.
    """
    text = re.sub(r"[\0\ud800-\udfff]", "\ufffd", str(value))
    return text if len(text) <= length else text[: length - len(CUT)] + CUT


def name(text: str) -> str:
    """Return a name of a tag, a param or a metric that MLflow accepts.

    A character that MLflow refuses is replaced by its code point, as in `a_7c_b`. MLflow reads slashes as separators
    of folders, so empty parts are removed, and the dots of a part of dots alone are replaced.
    """
    plain = re.sub(r"[^/\w.\- :]", lambda found: f"_{ord(found[0]):x}_", text)
    path = re.sub(r"/+", "/", plain)[:NAME].strip("/")
    return re.sub(r"(?:^|(?<=/))\.+(?=/|$)|^\.\.", lambda found: "_" * len(found[0]), path) or "_"


def model_name(text: str) -> str:
    """Return a name of a logged model that MLflow accepts; a character that it refuses is replaced by `_`."""
    return re.sub(r"[/:.%\"']", "_", truncated(text, NAME))


def tags(values: Mapping[str, object]) -> dict[str, str]:
    return {name(key): truncated(value, TAG) for key, value in values.items()}


def params(values: Mapping[str, object]) -> dict[str, str]:
    return {name(key): truncated(value, PARAM) for key, value in values.items()}


def metrics(values: Mapping[str, float]) -> dict[str, float]:
    return {name(key): value for key, value in values.items()}
