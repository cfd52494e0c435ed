"""Models that DVC restored from its cache, and whose training MLflow therefore never saw."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from leanresnet.analysis import runs as registry
from leanresnet.analysis.dvc_lock import read_lock
from leanresnet.evaluation.report import report_files
from leanresnet.files import file_hashes
from leanresnet.models.checkpoint import WEIGHTS, load_model
from leanresnet.tracking.log_outputs import log_report, run_for_outputs
from leanresnet.training.results import Outputs


def log_restored(root: Path) -> int:
    """Log from their outputs the models of a workspace's dvc.lock that MLflow lacks, and their evaluations.

    Returns:
        how many it lacked.
    """
    missing = 0
    for outputs, evaluated in _models(root):
        known = registry.find_run_of_weights(load_model(outputs.model).sha256)
        if known is None or (evaluated and "test/accuracy" not in known.metrics):
            missing += 1
            with run_for_outputs(outputs) as run:
                if evaluated:
                    log_report(run, outputs)
    return missing


def _models(root: Path) -> Iterator[tuple[Outputs, bool]]:
    """Those that lie there as dvc.lock has them, and whether the evaluation that lies there is of these weights.

    dvc.lock must have the digest of each file that is to be logged: a link in its place may lead anywhere.
    """
    # What lies elsewhere, which DVC allows, is no model of this workspace.
    stages = [stage for stage in read_lock(root).values() if all(map(_is_inside, stage.digests("outs")))]
    for stage in stages:
        outs = stage.digests("outs")
        places = {Path(path).name: path for path in outs}
        if not {WEIGHTS, "train.json"} <= places.keys():
            continue
        weights = places[WEIGHTS]
        outputs = Outputs((root / weights).parent, (root / places["train.json"]).parent)
        if _lie_there(root, outs, outputs.files()):
            measured = [each for each in stages if each.digests("deps").get(weights) == outs[weights]]
            yield outputs, any(_lie_there(root, each.digests("outs"), report_files(outputs)) for each in measured)


def _is_inside(path: str) -> bool:
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def _lie_there(root: Path, outs: dict[str, str], needed: Sequence[Path]) -> bool:
    """Whether all that a stage made are there as it made them, and the needed are among them."""
    found = {root / path for path, md5 in outs.items() if (root / path).exists() and file_hashes(root / path)[0] == md5}
    return len(found) == len(outs) and found.issuperset(needed)
