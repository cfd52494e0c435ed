"""The tags that say which code a run used, and who started it."""

import getpass
import os
from contextlib import suppress
from pathlib import Path

from leanresnet.errors import StorageError, warn
from leanresnet.tracking.events import EXPERIMENT_TAG, USER_TAG
from leanresnet.tracking.git import git

# The checkout of this code, if it runs from one.
CODE = Path(__file__).resolve().parents[3]


def source_tags() -> dict[str, str]:
    """Return tags: the git commit of the code, whether files differ from it, the user, and DVC's experiment, if any.

    The first two are "none" outside of a git repository. They are "unknown" if git refuses to read it, and a warning
    says why.
    """
    try:
        commit, dirty = _commit(CODE)
    except StorageError as error:
        warn(f"the run's commit is not known: {error}")
        commit = dirty = "unknown"
    tags = {"git.commit": commit, "git.dirty": dirty}
    with suppress(KeyError, OSError):  # the user's number may have no name, as in some containers
        tags[USER_TAG] = getpass.getuser()
    if "DVC_EXP_NAME" in os.environ:
        tags[EXPERIMENT_TAG] = os.environ["DVC_EXP_NAME"]
    return tags


def _commit(code: Path) -> tuple[str, str]:
    """Return the commit of the checkout `code`, and whether its files differ from it."""
    commit = git(code, "rev-parse", "HEAD", trusted=code)
    # An unpacked archive or an installed package may lie inside the repository of another project.
    if commit is None or not git(code, "ls-files", "--", "src/leanresnet", trusted=code):
        return "none", "none"
    # Only the code and the values determine a run; dvc.lock changes while the stages run.
    status = git(code, "status", "--porcelain", "--", "src", "pipeline", "params.yaml", "dvc.yaml", trusted=code)
    return commit.strip(), "unknown" if status is None else str(bool(status)).lower()
