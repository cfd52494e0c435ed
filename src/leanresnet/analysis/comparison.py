"""The comparison of runs: the params in which they differ, and their results."""

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from leanresnet.analysis import charts, runs
from leanresnet.analysis.lineage import find
from leanresnet.analysis.runs import RunRecord
from leanresnet.analysis.tables import fitted
from leanresnet.errors import DataError, warn
from leanresnet.files import save_figure, save_text
from leanresnet.text import markdown
from leanresnet.tracking.events import WEIGHTS_TAG

# The budget does not change a model, and the number of layers is the length of model.blocks.
NOT_COMPARED = {"max_parameters", "model.layers"}
# Metrics that a run needs for a comparison; an unfinished run or one of another program may lack them.
COMPARED = (runs.TRAINED, "model/parameters", "model/macs")
# Tags that determine a result besides the params: digests of the data, and of the teacher's weights.
MADE_FROM = {"training data": "dvc.train_md5", "validation data": "dvc.validation_md5", "teacher": "teacher.sha256"}
# The test accuracy of the study's network on CIFAR-10, with 4,935,242 parameters.
STUDY_ACCURACY = 0.9375
STUDY = "to the study"
# The names of `runs.validation_of` in tables.
VALIDATION = {runs.EVALUATED: "validation", runs.TRAINED: "validation in training"}
PAIRED = "paired difference"
# The name of a column, and its cell for a group of runs.
Column = tuple[str, Callable[[Sequence[RunRecord]], str]]
# The accuracy of a share p of N test images has the standard error sqrt(p * (1 - p) / N).
SEEDS_NOTE = (
    "± is the sample standard deviation over n seeds on one split. It leaves out the sampling error of the test split, "
    "0.24 points for 94 % of 10,000 images."
)


@dataclass(frozen=True)
class Comparison:
    """A table of runs.

    Attributes:
        groups: runs that share a row because they differ only in their seed; the best group is the first.
        header, rows: the cells of the table, a row for each group.
        params: how many of the last columns have params or digests in which the runs differ.
        notes: sentences that explain the cells.
    """

    groups: list[list[RunRecord]]
    header: list[str]
    rows: list[list[str]]
    params: int
    notes: list[str]

    def markdown(self) -> str:
        # Numbers are aligned to the right.
        rule = ["---:" if name in NUMBERS else "---" for name in self.header]
        header, *rows = ([markdown(cell) for cell in row] for row in (self.header, *self.rows))
        return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))

    def text(self, width: int) -> str:
        """Return the table with aligned columns, for a terminal of `width` columns."""
        numbers = [place for place, name in enumerate(self.header) if name in NUMBERS]
        return fitted([self.header, *self.rows], numbers, width)

    def write(self, out: Path) -> tuple[Path, Path]:
        """Write the table and its notes to `out`.md and a picture to `out`.png; return both paths.

        A suffix .md or .png of `out` is left out.
        """
        # `with_suffix` alone would cut a name at its last dot, such as that of a learning rate.
        name = out.stem if out.suffix in (".md", ".png") else out.name
        table, picture = (out.with_name(name + suffix) for suffix in (".md", ".png"))
        save_text("\n\n".join([self.markdown(), *self.notes]) + "\n", table)
        save_figure(charts.overview(self.groups), picture)
        return table, picture


def select(targets: Sequence[str], experiments: Sequence[str], here: Mapping[str, Collection[str]]) -> list[RunRecord]:
    """Return the runs to compare; without targets and experiments, all finished runs.

    Runs that lack what a comparison needs are left out with a warning.

    Args:
        targets: run ids, files of weights, or folders of models.
        experiments: names of DVC experiments; a name stands for the experiments `<name>` and `<name>-...`.
        here: the weights of the workspace's own experiments, see `runs.find_experiments`.

    Raises:
        DataError: if MLflow has no such run, or none of the runs can be compared.
        StorageError: if MLflow cannot be reached.
    """
    records = [find(target) for target in targets]
    records += [run for name in experiments for run in runs.find_experiments(name, here)]
    if not targets and not experiments:
        records = runs.find_finished()
    if not records:
        asked = f"experiment = {', '.join(experiments)}: " if experiments else ""
        sought = "names from `dvc exp list`" if experiments else "a training that finished"
        raise DataError(f"{asked}no finished run in {runs.place()}, expected: {sought}; {runs.REMEDY}")
    by_id: dict[str, RunRecord] = {}
    for run in records:
        # Several experiments may have the same model.
        known = by_id.get(run.run_id)
        by_id[run.run_id] = known.with_experiment(run.experiment) if known else run
    usable = []
    for run in by_id.values():
        missing = run.lacks(["model"], COMPARED)
        if missing:
            warn(f"run {run.run_id} {run.label}: left out, it is {run.status} and lacks {', '.join(missing)}")
        else:
            usable.append(run)
    if not usable:
        raise DataError(f"no run of {len(records)} can be compared, expected: trainings of leanresnet that finished")
    return usable


def compare(records: Sequence[RunRecord], by_seed: bool = True, against: str | None = None) -> Comparison:
    """Make a table with a row for each run, or with `by_seed`, a row for all runs that differ only in their seed.

    A row has the name of its first run. Validation accuracy is the same metric in all rows, see
    `runs.validation_of`. Of runs with the same weights, the one that was evaluated is shown.

    Args:
        against: the name or the id of a run, with whose row each other one is compared seed by seed, see
            `paired_difference`; or None. It needs `by_seed`.

    Raises:
        DataError: if there is no run with this name or id, or several rows have the name.
    """
    records = _without_repeats(records)
    groups = over_seeds(records) if by_seed else [[run] for run in records]
    # If a seed ran twice, a run is left out, and does not count for the columns either.
    shown = [run for group in groups for run in group]
    if len(shown) < len(records):
        left = f"{len(records) - len(shown)} of {len(records)} runs are left out"
        warn(f"{left}, because others have the same params and the same seed; `--group-by none` shows them")
    records = shown
    validation = runs.validation_of(records)
    groups.sort(key=lambda group: mean(group, validation) or 0.0, reverse=True)
    counted = any(len(group) > 1 for group in groups)
    baseline = None if against is None else _row_of(against, groups)
    columns: list[Column] = [("run", lambda group: group[0].label), ("model", lambda group: group[0].model)]
    if counted:
        columns.append(("n", lambda group: str(len(group))))
    columns += [(VALIDATION[validation], partial(_accuracy, key=validation)), *FIGURES.items()]
    if baseline is not None:
        columns.append((PAIRED, lambda group: "" if group is baseline else paired_difference(group, baseline)))
    keys = differing(records)
    columns += [(key, partial(_values, key=key)) for key in keys]
    # A missing teacher is not listed as another teacher, because the param distill.teacher shows it.
    sources = {name: tag for name, tag in MADE_FROM.items() if len({run.tags.get(tag) for run in records} - {None}) > 1}
    columns += [(name, partial(_digest, tag=tag)) for name, tag in sources.items()]
    # Without a run on the data of the study, which are CIFAR-10's, there is nothing to compare with it.
    columns = [(name, cell) for name, cell in columns if name != STUDY or any(map(cell, groups))]
    notes = [SEEDS_NOTE] if counted else []
    if baseline is not None:
        notes.append(
            f"The {PAIRED} is the test accuracy minus that of {markdown(baseline[0].label)}, in points: the mean over "
            "the seeds that both have, with its 95 % interval by Student's t distribution."
        )
    header = [name for name, _ in columns]
    rows = [[cell(group) for _, cell in columns] for group in groups]
    return Comparison(groups, header, rows, len(keys) + len(sources), notes)


def _without_repeats(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Leave out runs that were not evaluated, if a run of the same model with the same weights was.

    DVC evaluates a model that was trained again only if its bytes have changed.
    """

    def made(run: RunRecord) -> tuple[str, str]:
        return run.model, run.tags.get(WEIGHTS_TAG, run.run_id)

    evaluated = {made(run) for run in records if runs.EVALUATED in run.metrics}
    return [run for run in records if runs.EVALUATED in run.metrics or made(run) not in evaluated]


def differing(records: Sequence[RunRecord]) -> list[str]:
    """Return the params that are not the same in all runs, in the order of params.yaml."""
    keys = dict.fromkeys(key for run in records for key in run.params)
    return [key for key in keys if key not in NOT_COMPARED and len({run.params.get(key) for run in records}) > 1]


def over_seeds(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Group runs that differ only in their seed, sorted by seed.

    If a seed ran twice, the run that was evaluated is taken, then the newest.
    """
    groups: dict[tuple[object, ...], dict[str, RunRecord]] = {}
    for run in records:
        compared = {key: value for key, value in run.params.items() if key not in NOT_COMPARED | {"seed"}}
        made_from = (run.tags.get(tag) for tag in MADE_FROM.values())
        seeds = groups.setdefault((run.model, *made_from, *sorted(compared.items())), {})
        seed = run.params.get("seed", "0")
        seeds[seed] = max(run, seeds.get(seed, run), key=lambda each: (runs.EVALUATED in each.metrics, each.started))
    # Sorting by length and text orders numbers, and accepts the seeds of other programs, which may not be numbers.
    return [[seeds[seed] for seed in sorted(seeds, key=lambda text: (len(text), text))] for seeds in groups.values()]


def _row_of(name: str, groups: list[list[RunRecord]]) -> list[RunRecord]:
    """Return the group that has a run of this name or id."""
    found = [group for group in groups if any(name in (run.label, run.run_id, *run.experiments) for run in group)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(f"{group[0].run_id} ({group[0].model})" for group in found)
        raise DataError(f"against = {name!r}: in {len(found)} rows, expected: the id of a run, one of {ids}")
    names = ", ".join(group[0].label for group in groups)
    raise DataError(f"against = {name!r}: no such run, expected: one of {names}")


def paired_difference(group: Sequence[RunRecord], baseline: Sequence[RunRecord]) -> str:
    """Return the mean difference of the test accuracy from the baseline's run with the same seed, in points, as text.

    From two pairs on, it has the 95 % interval of the mean. Without a pair in which both have one it is empty.
    """
    theirs = {run.params.get("seed"): run.metrics.get("test/accuracy") for run in baseline}
    pairs = [(run.metrics.get("test/accuracy"), theirs.get(run.params.get("seed"))) for run in group]
    found = [100 * (own - other) for own, other in pairs if own is not None and other is not None]
    if len(found) < 2:
        return f"{found[0]:+.2f}" if found else ""
    # It takes a third of a second to import, and most comparisons have no pairs.
    from scipy.stats import t

    center = statistics.mean(found)
    half = float(t.ppf(0.975, len(found) - 1)) * statistics.stdev(found) / math.sqrt(len(found))
    return f"{center:+.2f} ({center - half:+.2f} to {center + half:+.2f})"


def mean(group: Sequence[RunRecord], key: str) -> float | None:
    """Return the mean of a metric over runs, or None if one of them lacks it."""
    values = [run.metrics.get(key) for run in group]
    return None if None in values else statistics.mean(value for value in values if value is not None)


def _to_the_study(group: Sequence[RunRecord]) -> str:
    test = mean(group, "test/accuracy")
    if test is None or group[0].tags.get("dataset") != "cifar10":
        return ""
    return f"{100 * (test - STUDY_ACCURACY):+.2f}"


def _latency(group: Sequence[RunRecord]) -> str:
    latency = mean(group, "speed/latency_ms")
    return "" if latency is None else f"{latency:.2f}"


def _minutes(group: Sequence[RunRecord]) -> str:
    seconds = mean(group, "train_seconds")
    return "" if seconds is None else f"{seconds / 60:.1f}" if seconds >= 60 else f"{seconds / 60:.2f}"


def _values(group: Sequence[RunRecord], key: str) -> str:
    """Return the values of a param in a group, each once."""
    return ", ".join(dict.fromkeys(run.params.get(key, "") for run in group))


def _digest(group: Sequence[RunRecord], tag: str) -> str:
    return group[0].tags.get(tag, "")[:8]


def _accuracy(group: Sequence[RunRecord], key: str) -> str:
    """Return the mean as text, with the sample standard deviation if there are several seeds."""
    value = mean(group, key)
    if value is None:
        return ""
    deviation = f" ± {100 * statistics.stdev(run.metrics[key] for run in group):.2f}" if len(group) > 1 else ""
    return f"{value:.2%}{deviation}"


# The columns that every table has, apart from the names and the validation accuracy.
FIGURES: dict[str, Callable[[Sequence[RunRecord]], str]] = {
    "test": partial(_accuracy, key="test/accuracy"),
    STUDY: _to_the_study,
    "parameters": lambda group: f"{group[0].metrics['model/parameters']:,.0f}",
    "million MACs": lambda group: f"{group[0].metrics['model/macs'] / 1e6:,.1f}",
    "latency, ms": _latency,
    "minutes": _minutes,
}
NUMBERS = {"n", *VALIDATION.values(), *FIGURES, PAIRED}
