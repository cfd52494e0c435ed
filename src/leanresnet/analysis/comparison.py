"""Runs side by side: in what they differ, and what came of it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leanresnet.analysis import charts
from leanresnet.analysis import runs as registry
from leanresnet.analysis.lineage import find
from leanresnet.analysis.runs import RunRecord
from leanresnet.errors import DataError, warn
from leanresnet.files import save_figure, save_text
from leanresnet.text import markdown

# The budget says nothing of how a model came to be, and as many blocks are listed as there are layers.
NOT_COMPARED = {"budget", "model.layers"}
# What each has to have; an unfinished run and one of somebody else may not.
COMPARED = (registry.TRAINED, "model/parameters", "model/macs")
# What else decides a result, and no param says: digests of the data, and of the weights that taught.
MADE_FROM = {"training data": "dvc.train_md5", "validation data": "dvc.validation_md5", "teacher": "teacher.sha256"}
# The study's test accuracy on CIFAR-10, of a network of 4,935,242 parameters.
PAPER = 0.9375
# How a table calls the measure of `registry.validation_of`.
VALIDATION = {registry.EVALUATED: "validation", registry.TRAINED: "validation in training"}
FIGURES = ["test", "to the paper", "parameters", "million MACs", "latency, ms", "minutes"]
NUMBERS = {*VALIDATION.values(), *FIGURES}


@dataclass(frozen=True)
class Comparison:
    """`groups` of runs that count as one, the best first, and a table with a row for each."""

    groups: list[list[RunRecord]]
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        # Numbers stand to the right.
        rule = ["---:" if name in NUMBERS else "---" for name in self.header]
        header, *rows = ([markdown(cell) for cell in row] for row in (self.header, *self.rows))
        return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))

    def write(self, out: Path) -> None:
        """`out`.md and `out`.png."""
        save_text(self.markdown() + "\n", out.with_suffix(".md"))
        save_figure(charts.overview(self.groups), out.with_suffix(".png"))


def select(targets: Sequence[str], questions: Sequence[str]) -> list[RunRecord]:
    """Runs by id or by a model's place, and those of DVC's experiments `<question>` and `<question>-...`.

    All that finished, where nothing is named. Those that cannot be compared are left out, with a warning.

    Raises:
        DataError: MLflow knows no such run, or none that can be compared.
        StorageError: MLflow cannot be asked.
    """
    runs = [find(target) for target in targets]
    runs += [run for question in questions for run in registry.find_experiments(question)]
    if not targets and not questions:
        runs = registry.find_finished()
    if not runs:
        asked = f"experiment = {', '.join(questions)}: " if questions else ""
        raise DataError(f"{asked}no finished run, expected: names from `dvc exp list`, run ids, models")
    usable = []
    for run in {run.run_id: run for run in runs}.values():
        missing = run.lacks(["model"], COMPARED)
        if missing:
            warn(f"run {run.run_id} {run.label}: left out, it is {run.status} and lacks {', '.join(missing)}")
        else:
            usable.append(run)
    if not usable:
        raise DataError(f"no run of {len(runs)} can be compared, expected: trainings of leanresnet that finished")
    return usable


def compare(runs: Sequence[RunRecord], by_seed: bool = True) -> Comparison:
    """A row a run; or a row for all that differ in their seed alone, called after the first of them.

    Validation is one measure in all rows, that of `registry.validation_of`.
    """
    validation = registry.validation_of(runs)
    groups = over_seeds(runs) if by_seed else [[run] for run in runs]
    groups.sort(key=lambda group: mean(group, validation) or 0.0, reverse=True)
    keys = differing(runs)
    # A model without a teacher is no other source: distill.teacher says that.
    sources = [name for name, tag in MADE_FROM.items() if len({run.tags.get(tag) for run in runs} - {None}) > 1]
    rows = [
        [
            group[0].label,
            group[0].model,
            _accuracy(group, validation),
            *_figures(group),
            *(", ".join(dict.fromkeys(run.params.get(key, "") for run in group)) for key in keys),
            *(group[0].tags.get(MADE_FROM[name], "")[:8] for name in sources),
        ]
        for group in groups
    ]
    return Comparison(groups, ["run", "model", VALIDATION[validation], *FIGURES, *keys, *sources], rows)


def differing(runs: Sequence[RunRecord]) -> list[str]:
    """The params that are not the same in all runs, in the order of params.yaml."""
    keys = dict.fromkeys(key for run in runs for key in run.params)
    return [key for key in keys if key not in NOT_COMPARED and len({run.params.get(key) for run in runs}) > 1]


def over_seeds(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs that differ in nothing but their seed, together and by seed; of a seed that ran twice, the last."""
    groups: dict[tuple[object, ...], dict[str, RunRecord]] = {}
    for run in runs:
        compared = {key: value for key, value in run.params.items() if key != "seed"}
        made_from = (run.tags.get(tag) for tag in MADE_FROM.values())
        seeds = groups.setdefault((run.model, *made_from, *sorted(compared.items())), {})
        seeds[run.params.get("seed", "0")] = run
    # In the order of the numbers, though somebody else's seed may be none.
    return [[seeds[seed] for seed in sorted(seeds, key=lambda text: (len(text), text))] for seeds in groups.values()]


def mean(group: Sequence[RunRecord], key: str) -> float | None:
    """None where one of the runs has no such metric."""
    values = [run.metrics.get(key) for run in group]
    return None if None in values else statistics.mean(value for value in values if value is not None)


def _figures(group: Sequence[RunRecord]) -> list[str]:
    seconds, latency, test = (mean(group, key) for key in ("train_seconds", "speed/latency_ms", "test/accuracy"))
    on_cifar = test is not None and group[0].tags.get("dataset") == "cifar10"
    return [
        _accuracy(group, "test/accuracy"),
        f"{100 * (test - PAPER):+.2f}" if on_cifar and test is not None else "",
        f"{group[0].metrics['model/parameters']:,.0f}",
        f"{group[0].metrics['model/macs'] / 1e6:,.1f}",
        "" if latency is None else f"{latency:.2f}",
        "" if seconds is None else f"{seconds / 60:.1f}",
    ]


def _accuracy(group: Sequence[RunRecord], key: str) -> str:
    """The mean, and the sample's standard deviation where there are several seeds."""
    value = mean(group, key)
    if value is None:
        return ""
    deviation = f" ± {100 * statistics.stdev(run.metrics[key] for run in group):.2f}" if len(group) > 1 else ""
    return f"{value:.2%}{deviation}"
