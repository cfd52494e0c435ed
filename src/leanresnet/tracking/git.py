"""What git says of a folder, whatever repository the environment names."""

import os
import subprocess
from pathlib import Path

from leanresnet.errors import StorageError


def environment() -> dict[str, str]:
    """This process's, without what points git at another repository, as a hook's or `git rebase --exec`'s does."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or "CONFIG" in key}


def git(folder: Path, *arguments: str, trusted: Path | None = None) -> str | None:
    """What git prints, or None where it fails or there is none.

    Args:
        trusted: a checkout that is read though it belongs to somebody else. Git runs commands that a repository's
            configuration names, so it must be one whose code runs here anyhow.

    Raises:
        StorageError: git does not read the repository, because it belongs to somebody else.
    """
    trust = [] if trusted is None else ["-c", f"safe.directory={trusted}"]
    command = ["git", "-C", str(folder), *trust, *arguments]
    try:
        done = subprocess.run(
            command, env=environment() | {"LC_ALL": "C"}, capture_output=True, encoding="utf-8", errors="replace"
        )
    except OSError:
        return None
    if "dubious ownership" in done.stderr:
        repair = "git config --global --add safe.directory FOLDER"
        raise StorageError(f"{folder}: git does not read a repository of somebody else, expected: `{repair}`")
    return done.stdout if done.returncode == 0 else None
