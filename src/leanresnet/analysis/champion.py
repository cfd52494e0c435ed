"""The choice of the champion, the model within its budget with the highest accuracy on the validation split."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from textwrap import indent

from leanresnet.analysis import runs
from leanresnet.analysis.dvc_lock import find_locked, outputs, read_lock
from leanresnet.analysis.lineage import TRAINING_TAGS, describe
from leanresnet.analysis.runs import EVALUATED, RunRecord
from leanresnet.errors import DataError, warn
from leanresnet.files import save_text
from leanresnet.text import markdown, plain
from leanresnet.tracking.events import DVC_WEIGHTS_TAG

ALIAS = "champion"
# Metrics that a candidate needs, and further metrics for its model card.
REQUIRED = ("test/accuracy", EVALUATED, "model/parameters")
MEASURED = ("model/macs", "test/calibration_error")
# Names of data sets that may be part of the name of a registered model.
DATASET = re.compile(r"[\w.-]{1,200}")
# The artifact with the complete lineage of the champion, since the model card has no room for the params of all stages.
FOLDER, LINEAGE = "champion", "lineage.txt"


def register_champion(root: Path) -> list[str]:
    """Register the champion of each data set as `leanresnet-<data set>` with the alias `ALIAS`.

    A candidate that lacks tags or metrics is left out with a warning.

    Args:
        root: the workspace, whose dvc.lock names its validation split, and is searched for the lineage, as are the
            commits.

    Returns:
        A line of text for each champion.

    Raises:
        DataError: if no run is a candidate.
        StorageError: if MLflow cannot be reached.
    """
    by_dataset: dict[str, list[RunRecord]] = defaultdict(list)
    for run in filter(is_candidate, runs.find_finished()):
        missing = run.lacks(TRAINING_TAGS, MEASURED)
        dataset = run.tags.get("dataset", "")
        if missing or not DATASET.fullmatch(dataset):
            why = f"it lacks {', '.join(missing)}" if missing else f"its data set is called {dataset!r}"
            warn(f"run {run.run_id} {run.label}: left out, {why}")
        else:
            by_dataset[dataset].append(run)
    if not by_dataset:
        sought = "an evaluated model within its budget"
        raise DataError(f"no champion: no finished run in {runs.place()}, expected: {sought}; {runs.REMEDY}")
    lines, ours = [], outputs(read_lock(root))
    for dataset, candidates in by_dataset.items():
        run, name = best(candidates, ours), f"leanresnet-{dataset}"
        with tempfile.TemporaryDirectory() as folder:
            # The lineage of an earlier call has the stages, if the dvc.lock that had them has been replaced since.
            kept = runs.download(run.run_id, f"{FOLDER}/{LINEAGE}", Path(folder))
            if kept and find_locked(run.tags[DVC_WEIGHTS_TAG], root) is None:
                version = runs.register(run, name, ALIAS, None)
            else:
                version = runs.register(run, name, ALIAS, card(run, describe(run, root, params=False)))
                save_text(describe(run, root) + "\n", Path(folder, LINEAGE))
                runs.upload(run.run_id, Path(folder, LINEAGE), FOLDER)
        figures = f"validation {run.metrics[EVALUATED]:.2%}, test {run.metrics['test/accuracy']:.2%}"
        lines.append(plain(f"{name} version {version} @{ALIAS}: run {run.run_id} {run.label}, {figures}"))
    return lines


def is_candidate(run: RunRecord) -> bool:
    """Return whether the run was evaluated and its model has a budget and does not exceed it."""
    budget = run.params.get("max_parameters", "None")
    if run.lacks([], REQUIRED) or not re.fullmatch("[0-9]{1,18}", budget):
        return False
    return run.metrics["model/parameters"] <= int(budget)


def best(candidates: Sequence[RunRecord], ours: Collection[str] = ()) -> RunRecord:
    """Return the run with the highest validation accuracy, then with the fewest parameters, then the oldest.

    The test accuracy is never used. Only runs with the same validation split are compared, because accuracies on
    different splits cannot be compared: the split of the workspace, or of the newest run if no candidate has that.

    Args:
        candidates: the runs, the newest last.
        ours: md5 of the files of the workspace, of which one may be its validation split.
    """
    own = [run for run in candidates if run.tags.get("dvc.validation_md5") in ours]
    split = (own or candidates)[-1].tags.get("dvc.validation_md5")
    comparable = [run for run in candidates if run.tags.get("dvc.validation_md5") == split]
    return max(comparable, key=lambda run: (run.metrics[EVALUATED], -run.metrics["model/parameters"]))


CARD = """\
# {name}

A ResNet for 32x32 colour images of the {classes} classes of {dataset}.
Pixels (batch, 3, 32, 32) in, logits (batch, {classes}) out.
Pixels are whole numbers from 0 to 255, as `float32`; others, such as those of normalised images, are refused. The model
assigns one of these classes to any image. It was evaluated on images of the data set that it was trained on; its
accuracy on other images is not known.

| | |
| --- | --- |
{figures}

How it was made (with the params of every stage: `{lineage}` among the run's artifacts):

{origin}
"""


def card(run: RunRecord, origin: str) -> str:
    """Return a model card (Mitchell et al., arXiv:1810.03993) in Markdown; `origin` is the lineage of the run."""
    figures = {
        "parameters": f"{run.metrics['model/parameters']:,.0f} of a budget of {int(run.params['max_parameters']):,}",
        "multiply-accumulates": f"{run.metrics['model/macs']:,.0f}",
        "validation accuracy, by which it was chosen": f"{run.metrics[EVALUATED]:.2%}",
        "test accuracy": f"{run.metrics['test/accuracy']:.2%}",
        "expected calibration error": f"{run.metrics['test/calibration_error']:.3f}",
    }
    for key, value in sorted(run.metrics.items()):
        if key.startswith("test/accuracy_of/"):
            figures[f"test accuracy of {markdown(key.removeprefix('test/accuracy_of/'))}"] = f"{value:.2%}"
    return CARD.format(
        classes=sum(key.startswith("test/accuracy_of/") for key in run.metrics),
        name=markdown(run.name),
        dataset=markdown(run.tags["dataset"]),
        figures="\n".join(f"| {what} | {value} |" for what, value in figures.items()),
        lineage=f"{FOLDER}/{LINEAGE}",
        origin=indent(origin, "    "),
    )
