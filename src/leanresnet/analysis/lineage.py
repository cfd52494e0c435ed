"""The lineage of a model: everything that it was made from. `rebuild` adds the commands that make it again."""

from contextlib import suppress
from pathlib import Path

from leanresnet.analysis import rebuild, runs
from leanresnet.analysis.dvc_lock import LOCK, Locked, find_locked
from leanresnet.analysis.runs import RunRecord
from leanresnet.errors import DataError, StorageError, redacted
from leanresnet.files import file_hashes
from leanresnet.models.checkpoint import WEIGHTS, load_origin
from leanresnet.text import plain
from leanresnet.tracking.connection import tracking_uri
from leanresnet.tracking.events import DVC_WEIGHTS_TAG, PARENT_TAG, WEIGHTS_TAG

# Tags and metrics of a run that wrote a model.
TRAINING_TAGS = (
    *("model", "dataset", "dvc.stage", "dvc.train_md5", "dvc.validation_md5", DVC_WEIGHTS_TAG, WEIGHTS_TAG),
    *("device", "torch", "git.commit", "git.dirty"),
)
SIZES = ("model/parameters", "model/macs")


def find(target: str) -> RunRecord:
    """Return the run of a target.

    Args:
        target: the id of a run, a file of weights, or the folder of a model.

    Raises:
        DataError: if MLflow has no such run.
        StorageError: if MLflow cannot be reached, or the file cannot be read.
    """
    path = Path(target)
    if path.is_dir() and not (path / WEIGHTS).exists():
        raise DataError(f"{target or path}: a folder without {WEIGHTS}, expected: the folder of a model, or a run's id")
    if not path.exists():
        run, what = runs.find_run(target), "neither a file nor a run's id"
    else:
        sha256, name = file_hashes(path / WEIGHTS if path.is_dir() else path)[1], None
        # The weights of a copy may have come without their description.
        with suppress(DataError, StorageError):
            name = load_origin(path if path.is_dir() else path.parent).name
        run, what = runs.find_run_of_weights(sha256, name), f"no run ended with these weights, SHA-256 {sha256}"
    if run is None:
        expected = f"a run in {runs.place()}, or the weights that it made"
        raise DataError(f"{target}: {what}, expected: {expected}; {runs.REMEDY}")
    return run


def describe(run: RunRecord, root: Path, params: bool = True) -> str:
    """Return the lineage of a run as text, which ends with the commands that make the model again.

    Args:
        root: the workspace, whose dvc.lock and commits are searched for the weights.
        params: whether to list the params, which are most of the text.

    Raises:
        DataError: if the run is not a training of leanresnet that wrote a model, or dvc.lock is damaged.
        StorageError: if MLflow cannot be reached.
    """
    missing = run.lacks(TRAINING_TAGS, SIZES)
    if missing:
        lacks = f"it is {run.status} and lacks {', '.join(missing)}"
        raise DataError(f"run {run.run_id}: {lacks}, expected: a training of leanresnet that wrote a model")
    sha256 = run.tags[WEIGHTS_TAG]
    found = find_locked(run.tags[DVC_WEIGHTS_TAG], root, run.tags["dvc.stage"])
    parts = {
        "model": _model(run),
        "weights": f"SHA-256 {sha256}, md5 {run.tags[DVC_WEIGHTS_TAG]}",
        "run": f"{run.run_id} {run.name}, {run.status}, in {redacted(tracking_uri())}",
        "code": _code(run),
        "made on": _place(run),
        "data": f"{run.tags['dataset']}, md5 {run.tags['dvc.train_md5']} (training), "
        f"{run.tags['dvc.validation_md5']} (validation)",
    }
    teacher = None
    if run.params.get("distill.teacher", "none") != "none":
        teacher = runs.find_run_of_weights(run.tags.get("teacher.sha256", ""), run.params["distill.teacher"])
        its_run = f"run {teacher.run_id}" if teacher else "its run is not in this MLflow"
        parts["teacher"] = f"{run.params['distill.teacher']}, {its_run}"
    if "extended_from" in run.params:
        parts["extends"] = (
            f"a training of {run.params['extended_from']} epochs, run {run.tags.get(PARENT_TAG, 'unknown')}"
        )
    lines = [f"{name:8} {text}" for name, text in parts.items()]
    lines += _stages(found) if found else []
    if params:
        lines += ["", "params", *_params(run, found)]
    return "\n".join(plain(line) for line in (*lines, "", *rebuild.commands(run, teacher, found, root)))


def _model(run: RunRecord) -> str:
    parameters, macs = run.metrics["model/parameters"], run.metrics["model/macs"]
    accuracies = {
        "validation": runs.EVALUATED,
        "validation in training": runs.TRAINED,
        "test": "test/accuracy",
    }
    known = [f"{name} {run.metrics[key]:.2%}" for name, key in accuracies.items() if key in run.metrics]
    return ", ".join([f"{run.model}: {parameters:,.0f} parameters, {macs / 1e6:,.1f} million MACs", *known])


def _code(run: RunRecord) -> str:
    changed = {"true": ", with uncommitted changes", "false": ""}.get(run.tags["git.dirty"], "")
    experiment = f", DVC experiment {run.experiment}" if run.experiment else ""
    return f"commit {run.tags['git.commit']}{changed}{experiment}"


def _place(run: RunRecord) -> str:
    processes = run.tags.get("processes", "1")
    shared = f", {processes} processes" if processes != "1" else ""
    return f"{run.tags['device']}, torch {run.tags['torch']}{shared}"


def _stages(found: Locked) -> list[str]:
    """Return lines with the digests of the stages' outputs in dvc.lock."""
    origin = f"of commit {found.commit}" if found.commit else "of this workspace, not committed"
    outs = [(name, *out) for name in found.before() for out in found.outs(name).items()]
    return [f"{LOCK} {origin}", *(f"    {name:16} {md5:36} {path}" for name, path, md5 in outs)]


def _params(run: RunRecord, found: Locked | None) -> list[str]:
    """Return lines with the params of all stages in dvc.lock, or of the run alone if dvc.lock has no such stage."""
    return found.params().splitlines() if found else [f"{key}: {value}" for key, value in run.params.items()]


def lineage(target: str, root: Path) -> str:
    """Return the lineage of a target, see `find` and `describe`."""
    return describe(find(target), root)
