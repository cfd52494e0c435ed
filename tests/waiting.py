"""Waiting for an event itself, on a machine of any speed, and a port to wait at."""

import socket
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
