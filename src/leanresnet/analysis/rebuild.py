"""The commands that make a model again: they fetch its code and its params, and repeat the trainings that it needs."""

import os
import re
from pathlib import Path
from shlex import join, quote

from leanresnet.analysis import runs
from leanresnet.analysis.dvc_lock import LOCK, Locked
from leanresnet.analysis.runs import RunRecord
from leanresnet.tracking.events import COMMIT, DVC_WEIGHTS_TAG, PARENT_TAG, WEIGHTS_TAG
from leanresnet.tracking.git import git


def commands(run: RunRecord, teacher: RunRecord | None, found: Locked | None, root: Path) -> list[str]:
    """Return the commands that make the model of a run again, as indented lines after one that says what they need.

    Args:
        run: the training.
        teacher: that of its teacher, if it has one that is known.
        found: the stage in a dvc.lock that wrote the weights, or None.
        root: the workspace.
    """
    code = _code(run, root)
    if run.tags.get("git.dirty") == "true":
        code.append("    # The code had uncommitted changes, so the bytes may be others.")
    if found is None:
        start = f"rebuild: {LOCK} has these weights neither here nor in a commit; with the code above and these params,"
        return [start, *code, *_extensions(run), _repro(run, run.tags["dvc.stage"])]
    start = "rebuild, or restore what DVC's cache still has"
    workspace: list[str] = []
    if found.commit:
        workspace = [*_fetch("git", root, found.commit), *_relink(root, found.commit)]
    else:
        start += ", with the code above and these params in params.yaml,"
    given = found.given()
    taught: list[str] = []
    is_other = teacher and ("extended_from" in teacher.params or _processes(teacher) != _processes(run))
    if teacher and is_other and teacher.tags.get(DVC_WEIGHTS_TAG) not in given.values():
        taught = [*_extensions(teacher), _repro(teacher, teacher.tags["dvc.stage"])]
    weights = next(path for path, md5 in found.outs(found.stage).items() if md5 == run.tags[DVC_WEIGHTS_TAG])
    return [
        start,
        *code,
        *workspace,
        *(f"    # No stage makes {path}, which has to have md5 {md5}." for path, md5 in given.items()),
        *taught,
        *_extensions(run),
        *_shortening(run, found),
        _repro(run, found.stage),
        f"    echo {quote(f'{run.tags[WEIGHTS_TAG]}  {weights}')} | sha256sum --check",
    ]


def _repro(run: RunRecord, stage: str) -> str:
    extends = "LEANRESNET_EXTEND=1 " if "extended_from" in run.params else ""
    return f"    {extends}{_processes(run)}dvc repro {quote(stage)}"


def _processes(run: RunRecord) -> str:
    """Return the variable for the number of processes; the sums of several are rounded in another order."""
    number = run.tags.get("processes", "1")
    return f"LEANRESNET_NPROC={quote(number)} " if number != "1" else ""


def _extensions(run: RunRecord) -> list[str]:
    """Return comments with the trainings that a run extends, in the order in which they have to be repeated."""
    steps: list[tuple[str, str]] = []
    shorter: RunRecord | None = run
    while shorter is not None and "extended_from" in shorter.params:
        epochs, shorter = shorter.params["extended_from"], runs.find_run(shorter.tags.get(PARENT_TAG, ""))
        steps.insert(0, (epochs, _processes(shorter or run)))
    if not steps:
        return []
    # DVC would restore the outputs of a shorter training, but not the state from which it is extended.
    repeat = f"dvc repro --no-run-cache {quote(run.tags['dvc.stage'])}"
    (first, processes), *more = steps
    return [
        f"    # The training of {run.model} was extended. Before the next command, set its epochs in params.yaml",
        f"    # to {first} and run `{processes}{repeat}`,",
        *(f"    # to {number} and run `LEANRESNET_EXTEND=1 {processes}{repeat}`," for number, processes in more),
        f"    # and to {run.params.get('epochs', '')}.",
    ]


def _shortening(run: RunRecord, found: Locked) -> list[str]:
    """Return a comment if dvc.lock has a training that extended this one and found no better epoch."""
    section = run.tags["dvc.stage"].partition("@")[0]
    epochs = found.value(f"{section}.{run.model}.epochs")
    if epochs is None or str(epochs) == run.params.get("epochs"):
        return []
    longer = f"{LOCK} has a training of {epochs} epochs with the same weights"
    return [f"    # {longer}; set the epochs of {run.model} in params.yaml to {run.params['epochs']}."]


def _code(run: RunRecord, root: Path) -> list[str]:
    """Return the commands that fetch the code of a run, if the workspace only has a link to a checkout."""
    link = root / "src" / "leanresnet"
    checkout = Path(os.path.realpath(link)).parents[1]
    if not link.is_symlink() or not (checkout / ".git").exists() or not re.fullmatch(COMMIT, run.tags["git.commit"]):
        return []
    return _fetch(f"git -C {quote(str(checkout))}", checkout, run.tags["git.commit"])


def _fetch(command: str, folder: Path, commit: str) -> list[str]:
    """Return the commands that fetch a commit; git would keep changed files, with which the model would be another."""
    changed = git(folder, "status", "--porcelain")
    stash = [f"    {command} stash --include-untracked"] if changed else []
    return [*stash, f"    {command} checkout {commit}"]


def _relink(root: Path, commit: str) -> list[str]:
    """Return the command that makes the link to the code anew, if that of the commit leads elsewhere."""
    link = Path("src", "leanresnet")
    if not (root / link).is_symlink() or not (git(root, "ls-tree", commit, str(link)) or "").startswith("120000"):
        return []
    target = str((root / link).readlink())
    same = git(root, "show", f"{commit}:./{link}") == target
    return [] if same else [f"    {join(['ln', '-sfn', target, str(link)])}"]
