"""Queries of the git repository of a folder, independent of the repository that the environment names."""

import os
import subprocess
from pathlib import Path

from leanresnet.errors import StorageError


def environment() -> dict[str, str]:
    """Return the environment without the variables that point git to another repository.

    Git sets them for hooks and for `git rebase --exec`.
    """
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or "CONFIG" in key}


def git(folder: Path, *arguments: str, trusted: Path | None = None) -> str | None:
    """Run git in a folder.

    Args:
        folder: where git runs.
        arguments: of git.
        trusted: a checkout that git may read even if it belongs to another user. Git runs commands that the
            configuration of a repository names, so only a checkout whose code this process runs anyway may be trusted.

    Returns:
        What git prints, or None if git fails or is not installed.

    Raises:
        StorageError: if git refuses to read the repository because it belongs to another user.
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
        raise StorageError(f"{folder}: git refuses to read the repository of another user, expected: `{repair}`")
    return done.stdout if done.returncode == 0 else None
