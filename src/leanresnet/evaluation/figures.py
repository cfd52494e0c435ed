"""The pictures of a trained model as matplotlib figures, which need no display."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from leanresnet.data.preview import image_grid
from leanresnet.data.splits import Split
from leanresnet.evaluation.predictions import Predictions
from leanresnet.text import abbreviated, drawn

# Of more classes, a matrix shows no numbers, which nobody could read.
MOST_NUMBERED = 20


def class_axes(classes: Sequence[str], width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of at least this size in inches for a matrix, a row per true and a column per predicted class."""
    least = min(0.16 * len(classes), 40)
    figure = Figure(figsize=(max(width, least), max(height, least)), layout="constrained")
    axes = figure.add_subplot()
    names, ticks = [drawn(abbreviated(name)) for name in classes], range(len(classes))
    size: dict[str, Any] = {"fontsize": 6} if len(classes) > MOST_NUMBERED else {}
    axes.set_xticks(ticks, names, rotation=45, ha="right", **size)
    axes.set_yticks(ticks, names, **size)
    axes.set(xlabel="predicted", ylabel="true")
    return figure, axes


def confusion_matrix(name: str, counts: Tensor, classes: tuple[str, ...]) -> Figure:
    """Draw the model `name`'s `counts` (classes, classes), a row per true class; colours are shares of that class."""
    figure, axes = class_axes(classes, 7.5, 6.5)
    figure.suptitle(drawn(name))
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class")
    ticks = range(len(classes) if len(classes) <= MOST_NUMBERED else 0)
    for row in ticks:
        for column in ticks:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", fontsize=8, color=color)
    return figure


def mistakes(name: str, split: Split, predictions: Predictions, count: int) -> Figure:
    """Draw the `count` wrong predictions of highest confidence of the model `name`, each below its two classes."""
    wrong = predictions.mistakes(count)
    confidence, chosen = predictions.probabilities[wrong].max(1)
    triples = zip(chosen.tolist(), confidence.tolist(), split.labels[wrong].tolist(), strict=True)
    names = [drawn(abbreviated(each)) for each in split.classes]
    titles = [f"{names[predicted]} {share:.0%}\nis {names[true]}" for predicted, share, true in triples]
    figure = image_grid(split.images[wrong], titles, columns=6)
    figure.suptitle(drawn(name))
    if not titles:
        figure.text(0.5, 0.5, "no mistakes", ha="center", va="center")
    return figure
