"""Models that DVC restored from its cache, and whose training MLflow therefore never saw."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leanresnet import registry
from leanresnet.assessment import log_assessment
from leanresnet.checkpoint import DESCRIPTION, WEIGHTS, load_model
from leanresnet.files import file_hashes
from leanresnet.lock import LOCK, digests, read_stages
from leanresnet.outputs import Outputs, run_of


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
            with run_of(outputs) as run:
                if evaluated:
                    log_assessment(run, outputs)
    return missing


def _models(root: Path) -> Iterator[tuple[Outputs, bool]]:
    """Those that lie there as dvc.lock has them, and whether the evaluation that lies there is of these weights."""
    if not (root / LOCK).exists():
        return
    stages = read_stages((root / LOCK).read_text()).values()
    for stage in stages:
        outs = digests(stage, "outs")
        folders = {Path(path).name: root / Path(path).parent for path in outs}
        if {WEIGHTS, DESCRIPTION, "train.json"} <= folders.keys() and _lie_there(root, outs):
            outputs = Outputs(folders[WEIGHTS], folders["train.json"])
            weights, report = (
                path.relative_to(root).as_posix() for path in (outputs.model / WEIGHTS, outputs.results / "test.json")
            )
            evaluations = [digests(other, "outs") for other in stages if _measures(other, report, weights, outs)]
            yield outputs, any(_lie_there(root, each) for each in evaluations)


def _measures(stage: dict[str, Any], report: str, weights: str, outs: dict[str, str]) -> bool:
    """Whether it wrote this report, on these weights."""
    return report in digests(stage, "outs") and digests(stage, "deps").get(weights) == outs[weights]


def _lie_there(root: Path, outs: dict[str, str]) -> bool:
    return all((root / path).exists() and file_hashes(root / path)[0] == md5 for path, md5 in outs.items())
