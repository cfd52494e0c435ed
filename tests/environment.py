"""The environment of the processes that tests start."""

import os
import sys
from pathlib import Path


def outside_environment(**changes: str) -> dict[str, str]:
    """The environment without what a developer's shell may have set for this project.

    Python's own variables can change what a process prints and when, and what an error is. PYTHONDONTWRITEBYTECODE,
    which images of Python set, would have each process compile the package anew, for 0.9 s.
    """
    others = ("LEANRESNET", "MLFLOW", "_MLFLOW", "DVC", "GIT_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    scripts = str(Path(sys.executable).parent)
    return kept | {"PATH": f"{scripts}{os.pathsep}{kept['PATH']}", "DVC_NO_ANALYTICS": "1"} | changes
