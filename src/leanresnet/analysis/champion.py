"""The best model within its budget, by rule: highest accuracy on a data set's validation split."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

from leanresnet.analysis import runs as registry
from leanresnet.analysis.lineage import TOLD, describe
from leanresnet.analysis.runs import EVALUATED, RunRecord
from leanresnet.errors import DataError, warn
from leanresnet.files import save_text
from leanresnet.text import markdown, plain

ALIAS = "champion"
# By what it is chosen, and what the model card tells besides.
REQUIRED = ("test/accuracy", EVALUATED, "model/parameters")
MEASURED = ("model/macs", "test/calibration_error")
# What may stand in the name of a registered model.
DATASET = re.compile(r"[\w.-]{1,200}")
# Where the champion's run has its whole lineage; the model card has no room for every stage's params.
FOLDER, LINEAGE = "champion", "lineage.txt"


def register_champion(root: Path) -> list[str]:
    """Register each data set's champion as `leanresnet-<data set>`, under the alias; a line for each.

    A candidate of which too little is known is left out, with a warning.

    Raises:
        DataError: no run is a candidate.
        StorageError: MLflow cannot be asked.
    """
    by_dataset: dict[str, list[RunRecord]] = defaultdict(list)
    for run in filter(is_candidate, registry.find_finished()):
        missing = run.lacks(TOLD, MEASURED)
        dataset = run.tags.get("dataset", "")
        if missing or not DATASET.fullmatch(dataset):
            why = f"it lacks {', '.join(missing)}" if missing else f"its data set is called {dataset!r}"
            warn(f"run {run.run_id} {run.label}: left out, {why}")
        else:
            by_dataset[dataset].append(run)
    if not by_dataset:
        raise DataError("no champion: no finished run, expected: an evaluated model with a budget, and within it")
    lines = []
    for dataset, runs in by_dataset.items():
        run, name = best(runs), f"leanresnet-{dataset}"
        version = registry.register(run, name, ALIAS, card(run, describe(run, root, params=False)))
        with tempfile.TemporaryDirectory() as folder:
            save_text(describe(run, root) + "\n", Path(folder, LINEAGE))
            registry.upload(run.run_id, Path(folder, LINEAGE), FOLDER)
        figures = f"validation {run.metrics[EVALUATED]:.2%}, test {run.metrics['test/accuracy']:.2%}"
        lines.append(plain(f"{name} version {version} @{ALIAS}: run {run.run_id} {run.label}, {figures}"))
    return lines


def is_candidate(run: RunRecord) -> bool:
    """Whether it was evaluated, has a budget and keeps within it."""
    budget = run.params.get("budget", "None")
    if run.lacks([], REQUIRED) or not re.fullmatch("[0-9]{1,18}", budget):
        return False
    return run.metrics["model/parameters"] <= int(budget)


def best(runs: Sequence[RunRecord]) -> RunRecord:
    """By validation, never by test; of equals, the one with fewer parameters, and of these the first.

    Accuracies compare on one validation split alone, so that of the newest run, the last, decides who takes part.
    """
    split = runs[-1].tags.get("dvc.validation_md5")
    comparable = [run for run in runs if run.tags.get("dvc.validation_md5") == split]
    return max(comparable, key=lambda run: (run.metrics[EVALUATED], -run.metrics["model/parameters"]))


CARD = """\
# {name}

A ResNet for 32x32 colour images of the ten classes of {dataset}: pixels (batch, 3, 32, 32) in, logits (batch, 10) out.
Pixels are whole numbers from 0 to 255, as `float32`; others, such as those of normalised images, are refused. It gives
one of these ten classes to any image. It was measured on images like those that it learned from; of others its accuracy
is not known.

| | |
| --- | --- |
{figures}

How it was made (with the params of every stage: `{lineage}` among the run's artifacts):

{origin}
"""


def card(run: RunRecord, origin: str) -> str:
    """A model card (Mitchell et al., arXiv:1810.03993) in Markdown; `origin` is the run's lineage."""
    figures = {
        "parameters": f"{run.metrics['model/parameters']:,.0f} of a budget of {int(run.params['budget']):,}",
        "multiply-accumulates": f"{run.metrics['model/macs']:,.0f}",
        "validation accuracy, by which it was chosen": f"{run.metrics[EVALUATED]:.2%}",
        "test accuracy": f"{run.metrics['test/accuracy']:.2%}",
        "expected calibration error": f"{run.metrics['test/calibration_error']:.3f}",
    }
    for key, value in sorted(run.metrics.items()):
        if key.startswith("test/accuracy_of/"):
            figures[f"test accuracy of {markdown(key.removeprefix('test/accuracy_of/'))}"] = f"{value:.2%}"
    return CARD.format(
        name=markdown(run.name),
        dataset=markdown(run.tags["dataset"]),
        figures="\n".join(f"| {what} | {value} |" for what, value in figures.items()),
        lineage=f"{FOLDER}/{LINEAGE}",
        origin=indent(origin, "    "),
    )
