"""The runs of a question side by side: in what they differ, and what came of it."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leanresnet.errors import DataError
from leanresnet.files import save_figure, save_text
from leanresnet.tracking import Recorded, find_experiments

# The first says nothing of how a model came to be; the others follow from its blocks.
NOT_COMPARED = {"budget", "model.layers", "model.pool"}


def compare_experiments(questions: Sequence[str], out: Path | None) -> str:
    """A Markdown table of the runs of DVC's experiments `<question>` and `<question>-...`, best first.

    With `out`, it is written to `out`.md too, and a picture to `out`.png.

    Raises:
        DataError: MLflow knows no such run.
        StorageError: MLflow cannot be asked, or a file not written.
    """
    runs = [run for question in questions for run in find_experiments(question)]
    if not runs:
        raise DataError(f"experiment = {', '.join(questions)}: no finished run, accepted: names from `dvc exp list`")
    runs.sort(key=lambda run: run.metrics["val/best_accuracy"], reverse=True)
    text = table(runs)
    if out is not None:
        save_text(text + "\n", out.with_suffix(".md"))
        save_figure(picture(runs), out.with_suffix(".png"))
    return text


def differing(runs: Sequence[Recorded]) -> list[str]:
    """The params that are not the same in all runs, in the order of params.yaml."""
    keys = dict.fromkeys(key for run in runs for key in run.params)
    return [key for key in keys if key not in NOT_COMPARED and len({run.params.get(key) for run in runs}) > 1]


def over_seeds(runs: Sequence[Recorded]) -> list[list[Recorded]]:
    """Runs that differ in nothing but their seed, together and by seed; the best group first, by the mean."""
    groups: dict[tuple[object, ...], list[Recorded]] = {}
    for run in sorted(runs, key=lambda run: int(run.params.get("seed", 0))):
        compared = {key: value for key, value in run.params.items() if key != "seed"}
        groups.setdefault((run.model, *sorted(compared.items())), []).append(run)
    return sorted(groups.values(), key=lambda group: _mean(group, "val/best_accuracy") or 0.0, reverse=True)


def table(runs: Sequence[Recorded]) -> str:
    """A line a run, or a line for all that differ in their seed alone, called after the first of them."""
    keys = differing(runs)
    figures = ["parameters", "million MACs", "validation", "test", "minutes"]
    head = ["experiment", "model", *keys, *figures]
    rule = ["---"] * (2 + len(keys)) + ["---:"] * len(figures)
    rows = [
        [
            group[0].experiment,
            group[0].model,
            *(", ".join(dict.fromkeys(run.params.get(key, "") for run in group)) for key in keys),
            *_figures(group),
        ]
        for group in over_seeds(runs)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _figures(group: Sequence[Recorded]) -> list[str]:
    seconds = _mean(group, "train_seconds")
    return [
        f"{group[0].metrics['model/parameters']:,.0f}",
        f"{group[0].metrics['model/macs'] / 1e6:,.1f}",
        _accuracy(group, "val/best_accuracy"),
        _accuracy(group, "test/accuracy"),
        "" if seconds is None else f"{seconds / 60:.1f}",
    ]


def _accuracy(group: Sequence[Recorded], key: str) -> str:
    """The mean, and the sample's standard deviation where there are several seeds."""
    mean = _mean(group, key)
    if mean is None:
        return ""
    deviation = f" ± {100 * statistics.stdev(run.metrics[key] for run in group):.2f}" if len(group) > 1 else ""
    return f"{mean:.2%}{deviation}"


def _mean(group: Sequence[Recorded], key: str) -> float | None:
    """None where one of the runs has no such metric."""
    values = [run.metrics.get(key) for run in group]
    return None if None in values else statistics.mean(value for value in values if value is not None)


def picture(runs: Sequence[Recorded]) -> Figure:
    """Validation by epoch; and where sizes differ, the best of it over MACs and parameters, each with its front."""
    sizes = {"parameters": "model/parameters", "multiply-accumulates": "model/macs"}
    drawn = {label: key for label, key in sizes.items() if len({run.metrics[key] for run in runs}) > 2}
    figure = Figure(figsize=(7 + 5 * len(drawn), 4.5), layout="constrained")
    axes = figure.subplots(1, 1 + len(drawn), squeeze=False)[0]
    for run in runs:
        label = f"{run.experiment} ({run.model})"
        axes[0].plot(range(1, len(run.validation) + 1), [100 * value for value in run.validation], label=label)
    axes[0].set(xlabel="epoch", ylabel="validation accuracy, %")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(fontsize=7)
    axes[0].grid(alpha=0.3)
    for place, (label, key) in zip(axes[1:], drawn.items(), strict=True):
        _scatter(place, [(run.metrics[key], 100 * run.metrics["val/best_accuracy"], run.experiment) for run in runs])
        place.set(xlabel=label, ylabel="best validation accuracy, %")
    return figure


def front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """The points (cost, accuracy, name) that no other one beats at the same or a lower cost, the cheapest first."""
    found: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda each: (each[0], -each[1])):
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return found


def _scatter(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    axes.scatter([cost for cost, _, _ in points], [accuracy for _, accuracy, _ in points])
    best = front(points)
    axes.plot(
        [cost for cost, _, _ in best], [accuracy for _, accuracy, _ in best], drawstyle="steps-post", label="front"
    )
    for cost, accuracy, name in best:
        axes.annotate(name, (cost, accuracy), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
