"""The logging of models that DVC restored from its cache, so that their training was never reported to MLflow."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from leanresnet.analysis import runs
from leanresnet.analysis.dvc_lock import read_lock
from leanresnet.evaluation.report import report_files
from leanresnet.files import file_hashes
from leanresnet.models.checkpoint import WEIGHTS, load_model
from leanresnet.tracking.journal import training_of
from leanresnet.tracking.log_outputs import log_report, run_for_outputs
from leanresnet.training.results import Outputs


def log_restored(root: Path) -> int:
    """Log the models of a workspace's dvc.lock and their evaluations, as far as MLflow lacks them.

    Returns:
        Number of models that MLflow lacked, or whose evaluation it lacked.
    """
    missing = 0
    for outputs, evaluated in _models(root):
        model = load_model(outputs.model)
        # Its training may have been reported, and not received yet.
        if training_of((model.about["name"], model.sha256)) is not None:
            continue
        known = runs.find_run_of_weights(model.sha256, model.about["name"])
        if known is None or (evaluated and "test/accuracy" not in known.metrics):
            missing += 1
            with run_for_outputs(model, outputs) as run:
                if evaluated:
                    log_report(run, outputs)
    return missing


def _models(root: Path) -> Iterator[tuple[Outputs, bool]]:
    """Iterate over the models whose outputs match dvc.lock, with whether an evaluation of their weights matches, too.

    Only files whose digest is in dvc.lock are logged, because a link in their place may lead anywhere.
    """
    # DVC allows outputs outside of the workspace, but they are not models of this workspace.
    stages = [stage for stage in read_lock(root).values() if all(map(_is_inside, stage.digests("outs")))]
    for stage in stages:
        outs = stage.digests("outs")
        places = {Path(path).name: path for path in outs}
        if not {WEIGHTS, "train.json"} <= places.keys():
            continue
        weights = places[WEIGHTS]
        outputs = Outputs((root / weights).parent, (root / places["train.json"]).parent)
        if _match(root, outs, outputs.files()):
            measured = [each for each in stages if each.digests("deps").get(weights) == outs[weights]]
            yield outputs, any(_match(root, each.digests("outs"), report_files(outputs)) for each in measured)


def _is_inside(path: str) -> bool:
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def _match(root: Path, outs: dict[str, str], needed: Sequence[Path]) -> bool:
    """Return whether all outputs of a stage exist with their digests, and the needed files are among them."""
    found = {root / path for path, md5 in outs.items() if (root / path).exists() and file_hashes(root / path)[0] == md5}
    return len(found) == len(outs) and found.issuperset(needed)
