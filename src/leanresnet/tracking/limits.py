"""What MLflow's database takes. A server's columns have a width, which sqlite does not hold anybody to.

tests/unit/tracking/test_limits.py compares the numbers with MLflow's own tables and checks.
"""

import re
from collections.abc import Mapping

NAME = 250  # of a run, and of a tag, a param and a metric
PARAM = 6_000
TAG = 8_000
DESCRIPTION = 5_000  # of a version of a registered model
DATASET_NAME, DATASET_DIGEST = 500, 36
CUT = " [cut]"


def fitted(value: object, length: int) -> str:
    """As text of at most so many characters: its beginning and a mark, where it has more.

    PostgreSQL stores no NUL, and no database half a surrogate pair.
    """
    text = re.sub(r"[\0\ud800-\udfff]", "\ufffd", str(value))
    return text if len(text) <= length else text[: length - len(CUT)] + CUT


def name(text: str) -> str:
    """Of a tag, a param or a metric: a character that MLflow refuses there becomes its number, as in `a_7c_b`.

    A slash separates folders, so it gets what a path may be: no empty part, and none of dots alone.
    """
    plain = re.sub(r"[^/\w.\- :]", lambda found: f"_{ord(found[0]):x}_", text)
    path = re.sub(r"/+", "/", plain)[:NAME].strip("/")
    return re.sub(r"(?:^|(?<=/))\.+(?=/|$)|^\.\.", lambda found: "_" * len(found[0]), path) or "_"


def tags(values: Mapping[str, object]) -> dict[str, str]:
    return {name(key): fitted(value, TAG) for key, value in values.items()}


def params(values: Mapping[str, object]) -> dict[str, str]:
    return {name(key): fitted(value, PARAM) for key, value in values.items()}


def metrics(values: Mapping[str, float]) -> dict[str, float]:
    return {name(key): value for key, value in values.items()}
