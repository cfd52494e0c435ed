"""Access to the files of the release, from which a workspace is made, and to DVC's command."""

import subprocess
import sys
from itertools import takewhile
from pathlib import Path


def released(name: str) -> Path:
    """Return the path of a file or folder of the release, such as ``presets``, in a checkout or an installed wheel."""
    return Path(__file__).resolve().parent.parent / name


def dvc(*arguments: str, folder: Path | None = None, shown: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command of DVC; a failure raises no exception, but is in the result.

    Args:
        folder: where to run it, or None for the current folder.
        shown: whether the output goes to the terminal instead of the result.
    """
    from leanresnet.tracking.git import environment

    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment() | {"DVC_NO_ANALYTICS": "1"}, capture_output=not shown, text=True
    )


def reason(failed: subprocess.CompletedProcess[str]) -> str:
    """Return DVC's error message from the result of a failed command, without excerpts of files and advice."""
    lines = [line.rstrip() for line in failed.stderr.strip().splitlines()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if errors and errors[0].endswith(":"):
        # The processes that hold a file are on the next lines.
        following = lines[lines.index(f"ERROR: {errors[0]}") + 1 :]
        errors[0] += " " + ", ".join(line.strip() for line in takewhile(bool, following))
    # If DVC cannot parse a file, one paragraph starts with the name of the file and the next one with the error.
    heads = [line for before, line in zip(["", *lines], lines, strict=False) if line and not before]
    return " ".join(errors[:1] or heads[:2]) or "no reason given"
