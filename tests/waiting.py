"""Waiting for an event itself, on a machine of any speed, and a port to wait at."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
# Seconds. Nothing takes as long, not even on a machine that is busy otherwise: it ends what would wait for ever.
PATIENCE = 900.0
# Each process of pytest-xdist, gw0 and so on, has ports of its own.
FIRST_PORT = 20_000 + 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 12)
PORTS = iter(range(FIRST_PORT, FIRST_PORT + 1_000))


def wait_for(found: Callable[[], T], pause: float = 0.05) -> T:
    """What `found` gives, once that is true."""
    end = time.monotonic() + PATIENCE
    while not (result := found()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause)
    return result


def free_port() -> int:
    """A port for a server that starts later.

    The system gives those from 32768 on to whoever asks, so another process might have one before the server does.
    """
    for port in PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")
