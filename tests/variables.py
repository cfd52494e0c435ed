"""A check in a process that trains: no environment variable is added beside the thread that sends to MLflow."""

import os
import sys
import threading
from typing import Any


def refuse_new() -> None:
    """See `connection.set_environment` for why; it holds for the thread itself and for the others."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.putenv" and any(thread.name == "mlflow" for thread in threading.enumerate()):
        name = os.fsdecode(arguments[0])
        assert name in os.environ, f"{threading.current_thread().name} added {name} to the environment"
