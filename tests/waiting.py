"""Waiting for an event itself, on a machine of any speed."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# Seconds. Nothing takes as long, not even on a machine that is busy otherwise: it ends what would wait for ever.
PATIENCE = 900.0


def wait_for(found: Callable[[], T], pause: float = 0.05) -> T:
    """What `found` gives, once that is true."""
    end = time.monotonic() + PATIENCE
    while not (result := found()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause)
    return result
