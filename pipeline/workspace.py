"""A workspace: the released files that it starts from, and its DVC."""

import subprocess
import sys
from pathlib import Path


def released(name: str) -> Path:
    """A file or a folder of the release, such as ``presets``. A checkout and a wheel have them beside the commands."""
    return Path(__file__).resolve().parent.parent / name


def dvc(*arguments: str, folder: Path | None = None, shown: bool = False) -> subprocess.CompletedProcess[str]:
    """DVC's command in `folder`, or here; a failure is in the result, and what it printed, unless that is shown."""
    from leanresnet.tracking.git import environment

    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment() | {"DVC_NO_ANALYTICS": "1"}, capture_output=not shown, text=True
    )


def reason(failed: subprocess.CompletedProcess[str]) -> str:
    """The lines in which DVC says what is wrong, without excerpts and advice."""
    lines = [line.rstrip() for line in failed.stderr.strip().splitlines()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    # Where it cannot parse a file, one paragraph begins with the file's name and the next one with the fault.
    heads = [line for before, line in zip(["", *lines], lines, strict=False) if line and not before]
    return " ".join(errors[:1] or heads[:2]) or "no reason given"
