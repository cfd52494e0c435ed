"""The charts of a comparison of runs as matplotlib figures, which need no display."""

from collections.abc import Sequence
from statistics import mean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from leanresnet.analysis.runs import EVALUATED, RunRecord, validation_of
from leanresnet.text import drawn

Groups = Sequence[Sequence[RunRecord]]
# matplotlib has ten colours, so the line style changes after each ten curves.
STYLES = ("-", "--", ":", "-.")
# Names and metrics of the costs over which accuracy is drawn.
COSTS = {
    "parameters": "model/parameters",
    "multiply-accumulates": "model/macs",
    "latency, ms": "speed/latency_ms",
}


def overview(groups: Groups) -> Figure:
    """Draw the curves, and accuracy over parameters and over multiply-accumulates if these differ between runs."""
    drawn = [cost for cost in ("parameters", "multiply-accumulates") if costs_differ(groups, cost)]
    figure = Figure(figsize=(7 + 5 * len(drawn), 4.5), layout="constrained")
    axes = figure.subplots(1, 1 + len(drawn), squeeze=False)[0]
    _curves(axes[0], groups)
    for place, cost in zip(axes[1:], drawn, strict=True):
        _trade_off(place, groups, cost)
    return figure


def curves(groups: Groups) -> Figure:
    """Draw the validation accuracy of each group by epoch."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    _curves(figure.add_subplot(), groups)
    return figure


def trade_off(groups: Groups, cost: str) -> Figure:
    """Draw the validation accuracy of each group over a cost, a key of `COSTS`."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    _trade_off(figure.add_subplot(), groups, cost)
    return figure


def costs_differ(groups: Groups, cost: str) -> bool:
    """Return whether a chart over this cost is useful: every run has a value, and there are at least three values."""
    values = {run.metrics.get(COSTS[cost]) for group in groups for run in group}
    return None not in values and len(values) > 2


def confusion_difference(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw `counts` (classes, classes), the confusion matrix of one model minus that of another."""
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    most = max(1, int(np.abs(counts).max()))
    image = axes.imshow(counts, cmap="RdBu", vmin=-most, vmax=most)
    figure.colorbar(image, ax=axes, label="images, first minus second")
    ticks = range(len(classes))
    names = [drawn(name) for name in classes]
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true")
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if abs(counts[row, column]) > 0.6 * most else "black"
        axes.text(column, row, f"{counts[row, column]:+d}", ha="center", va="center", fontsize=7, color=color)
    return figure


def front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Return the Pareto front of points (cost, accuracy, name), sorted by cost.

    For each of its points, no other point has the same or a lower cost and at least the same accuracy.
    """
    found: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda each: (each[0], -each[1])):
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return found


def _curves(axes: Axes, groups: Groups) -> None:
    """Draw validation accuracy by epoch; for several seeds, their mean and the range from lowest to highest."""
    for number, group in enumerate(groups):
        histories = [run.validation() for run in group]
        length = min(len(history) for history in histories)
        values = 100 * np.array([history[:length] for history in histories])
        epochs = range(1, length + 1)
        style, label = STYLES[number // 10 % len(STYLES)], drawn(f"{group[0].label} ({group[0].model})")
        (line,) = axes.plot(epochs, values.mean(0), style, label=label)
        if len(group) > 1:
            axes.fill_between(epochs, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="epoch", ylabel="validation accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Without handles, matplotlib leaves out curves whose names begin with an underscore.
    axes.legend(handles=axes.lines, fontsize=7)
    axes.grid(alpha=0.3)


def _trade_off(axes: Axes, groups: Groups, cost: str) -> None:
    """Draw a point for each group, at the means over its seeds, and the Pareto front."""
    costs = [mean(run.metrics[COSTS[cost]] for run in group) for group in groups]
    validation = validation_of(run for group in groups for run in group)
    accuracies = [100 * mean(run.metrics[validation] for run in group) for group in groups]
    axes.scatter(costs, accuracies)
    best = front(list(zip(costs, accuracies, (group[0].label for group in groups), strict=True)))
    axes.plot(
        [value for value, _, _ in best], [accuracy for _, accuracy, _ in best], drawstyle="steps-post", label="front"
    )
    middle = sum(axes.get_xlim()) / 2
    for value, accuracy, name in best:
        # Names of points in the right half are on their left, so that they stay inside the picture.
        side, offset = ("right", -3) if value > middle else ("left", 3)
        axes.annotate(
            drawn(name), (value, accuracy), fontsize=6, xytext=(offset, 3), textcoords="offset points", ha=side
        )
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if COSTS[cost].startswith("model/"):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    name = "validation accuracy" if validation == EVALUATED else "best validation accuracy in training"
    axes.set(xlabel=cost, ylabel=f"{name}, %")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
