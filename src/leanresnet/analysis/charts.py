"""The charts of a comparison of runs as matplotlib figures, which need no display."""

from collections.abc import Sequence
from statistics import mean
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter, MaxNLocator
from matplotlib.transforms import Bbox, BboxBase

from leanresnet.analysis.runs import EVALUATED, RunRecord, validation_of
from leanresnet.evaluation.figures import MOST_NUMBERED, class_axes
from leanresnet.text import drawn
from leanresnet.training.curves import limits

Groups = Sequence[Sequence[RunRecord]]
# A group has the same colour in all charts. matplotlib has ten, so line and marker change after each ten groups.
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "^", "s", "D")
# Cells without a difference are transparent, so that the page's own background is seen, also a dark one.
RED, BLUE = (0.7, 0.09, 0.17), (0.13, 0.4, 0.67)
DIFFERENCES = LinearSegmentedColormap.from_list(
    "differences", [(0, (*RED, 1)), (0.5, (*RED, 0)), (0.5, (*BLUE, 0)), (1, (*BLUE, 1))]
)
# The most groups whose names are inside the chart of the curves; more are named beside it.
MOST_INSIDE = 10
# Where the name of a point may stand, in points of 1/72 inch from it; the nearest free place is taken.
PLACES = [
    (right * distance, up * distance)
    for distance in (3, 9, 16, 26, 40)
    for right, up in ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
]
BESIDE: dict[int, Literal["left", "center", "right"]] = {-1: "right", 0: "center", 1: "left"}
ABOVE: dict[int, Literal["bottom", "center", "top"]] = {-1: "top", 0: "center", 1: "bottom"}
# Names and metrics of the costs over which accuracy is drawn.
COSTS = {
    "parameters": "model/parameters",
    "multiply-accumulates": "model/macs",
    "latency, ms": "speed/latency_ms",
}
SIZES = ("parameters", "multiply-accumulates")


def overview(groups: Groups) -> Figure:
    """Draw the curves, and accuracy over parameters and over multiply-accumulates if these differ between runs."""
    costs = [cost for cost in SIZES if costs_differ(groups, cost)]
    figure = Figure(figsize=_size(groups, 7 + 5 * len(costs), 4.5), layout="constrained")
    axes = figure.subplots(1, 1 + len(costs), squeeze=False)[0]
    _curves(axes[0], groups)
    points = [_trade_off(place, groups, cost) for place, cost in zip(axes[1:], costs, strict=True)]
    for place, found in zip(axes[1:], points, strict=True):
        _name_points(figure, place, groups, found)
    return figure


def color(number: int) -> str:
    """Return the colour of the group of this number in all charts, as #rrggbb."""
    return to_hex(f"C{number % 10}")


def curves(groups: Groups) -> Figure:
    """Draw the validation accuracy of each group by epoch."""
    figure = Figure(figsize=_size(groups, 5.5, 4), layout="constrained")
    _curves(figure.add_subplot(), groups)
    return figure


def trade_off(groups: Groups, cost: str) -> Figure:
    """Draw the validation accuracy of each group over a cost, a key of `COSTS`."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.add_subplot()
    _name_points(figure, axes, groups, _trade_off(axes, groups, cost))
    return figure


def costs_differ(groups: Groups, cost: str) -> bool:
    """Return whether a chart over this cost is useful: every run has a value, and they differ by more than 1 %.

    The latency of networks of one size differs by what ran beside the measurement, so a size has to differ too.
    """
    values = [run.metrics[COSTS[cost]] for group in groups for run in group if COSTS[cost] in run.metrics]
    if len(values) < sum(map(len, groups)) or max(values) <= 1.01 * min(values):
        return False
    return cost in SIZES or any(costs_differ(groups, size) for size in SIZES)


def confusion_difference(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw `counts` (classes, classes), the confusion matrix of one model minus that of another."""
    figure, axes = class_axes(classes, 5.5, 4.5)
    most = max(1, int(np.abs(counts).max()))
    image = axes.imshow(counts, cmap=DIFFERENCES, vmin=-most, vmax=most)
    figure.colorbar(image, ax=axes, label="images, first minus second", ticks=MaxNLocator(integer=True))
    for row, column in zip(*np.nonzero(counts if len(classes) <= MOST_NUMBERED else 0 * counts), strict=True):
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
    """Draw validation accuracy by epoch; for several seeds, their mean and the range from lowest to highest.

    `limits` sets the range of the axis.
    """
    shown = []
    for number, group in enumerate(groups):
        histories = [run.validation() for run in group]
        length = min(len(history) for history in histories)
        values = 100 * np.array([history[:length] for history in histories])
        epochs = range(1, length + 1)
        style, label = STYLES[number // 10 % len(STYLES)], drawn(f"{group[0].label} ({group[0].model})")
        axes.plot(epochs, values.mean(0), style, label=label, color=color(number))
        shown += list(values)
        if len(group) > 1:
            axes.fill_between(epochs, values.min(0), values.max(0), color=color(number), alpha=0.2, linewidth=0)
    axes.set(xlabel="epoch", ylabel="validation accuracy, %", ylim=limits(shown))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Without handles, matplotlib leaves out curves whose names begin with an underscore.
    if len(groups) <= MOST_INSIDE:
        axes.legend(handles=axes.lines, fontsize=7)
    else:
        axes.figure.legend(handles=axes.lines, fontsize=7, loc="outside right upper")
    axes.grid(alpha=0.3)


def _size(groups: Groups, width: float, height: float) -> tuple[float, float]:
    """Return the size in inches of a picture of the curves, which has room for names beside them."""
    return (width, height) if len(groups) <= MOST_INSIDE else (width + 2, max(height, 0.16 * len(groups) + 0.3))


def _trade_off(axes: Axes, groups: Groups, cost: str) -> list[tuple[float, float]]:
    """Draw a point for each group, at the means over its seeds, and the Pareto front; return the points."""
    costs = [mean(run.metrics[COSTS[cost]] for run in group) for group in groups]
    validation = validation_of(run for group in groups for run in group)
    accuracies = [100 * mean(run.metrics[validation] for run in group) for group in groups]
    points = list(zip(costs, accuracies, strict=True))
    for number, point in enumerate(points):
        axes.scatter(*point, color=color(number), marker=MARKERS[number // 10 % len(MARKERS)], zorder=3)
    best = front(list(zip(costs, accuracies, (group[0].label for group in groups), strict=True)))
    # A front of one run is only its point, and a legend would name a line that is not there.
    if len(best) > 1:
        front_costs, front_accuracies, _ = zip(*best, strict=True)
        axes.plot(front_costs, front_accuracies, drawstyle="steps-post", label="front", color="grey")
        axes.legend(fontsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if COSTS[cost].startswith("model/"):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    name = "validation accuracy" if validation == EVALUATED else "best validation accuracy in training"
    axes.set(xlabel=cost, ylabel=f"{name}, %")
    axes.grid(alpha=0.3)
    return points


def _name_points(figure: Figure, axes: Axes, groups: Groups, points: Sequence[tuple[float, float]]) -> None:
    """Name the points of a finished picture, each beside its point and where it covers no other name or point."""
    # This computes the layout, by which places are known in pixels.
    figure.draw_without_rendering()
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in axes.transData.transform(points)]
    legend = axes.get_legend()
    taken += [legend.get_window_extent()] if legend else []
    for group, point in zip(groups, points, strict=True):
        text = axes.annotate(drawn(group[0].label), point, xytext=PLACES[0], textcoords="offset points", fontsize=6)
        text.set_in_layout(False)
        boxes = [(_put(text, place), place) for place in PLACES]
        inside = [each for each in boxes if _holds(axes.bbox, each[0])] or boxes
        box, place = min(inside, key=lambda each: _overlaps(each[0], taken))
        _put(text, place)
        taken.append(box)


def _overlaps(box: Bbox, others: Sequence[Bbox]) -> int:
    """Return how many of the other boxes overlap a box."""
    return sum(box.overlaps(other) for other in others)


def _put(text: Annotation, place: tuple[int, int]) -> Bbox:
    """Move a name to a place beside its point, and return its box in pixels."""
    right, up = place
    text.set_position(place)
    text.set_horizontalalignment(BESIDE[int(np.sign(right))])
    text.set_verticalalignment(ABOVE[int(np.sign(up))])
    return text.get_window_extent()


def _holds(outer: BboxBase, inner: Bbox) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)
