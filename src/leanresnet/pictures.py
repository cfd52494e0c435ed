"""The pictures of a data set and of a trained model, as matplotlib figures; none needs a display."""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from leanresnet.data.splits import Split
from leanresnet.predictions import Predictions
from leanresnet.text import drawn


def samples(split: Split) -> Figure:
    """The first image of each class."""
    first = [int((split.labels == label).nonzero()[0]) for label in range(len(split.classes))]
    return _grid(split.images[first], [drawn(name) for name in split.classes], columns=5)


def confusion_matrix(counts: Tensor, classes: tuple[str, ...]) -> Figure:
    """Counts in each cell, coloured by their share of the true class."""
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axes = figure.add_subplot()
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class")
    ticks = range(len(classes))
    names = [drawn(name) for name in classes]
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted", ylabel="true")
    for row in ticks:
        for column in ticks:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", fontsize=8, color=color)
    return figure


def mistakes(split: Split, predictions: Predictions, count: int) -> Figure:
    """The wrong answers given with most confidence, each under what was said and what was true."""
    wrong = predictions.mistakes(count)
    confidence, chosen = predictions.probabilities[wrong].max(1)
    titles = [
        f"{drawn(split.classes[said])} {sure:.0%}\nis {drawn(split.classes[true])}"
        for said, sure, true in zip(chosen.tolist(), confidence.tolist(), split.labels[wrong].tolist(), strict=True)
    ]
    return _grid(split.images[wrong], titles, columns=6)


def _grid(images: Tensor, titles: list[str], columns: int) -> Figure:
    rows = max(1, -(-len(titles) // columns))
    figure = Figure(figsize=(1.5 * columns, 1.8 * rows), layout="constrained")
    if not titles:
        figure.text(0.5, 0.5, "no mistakes", ha="center", va="center")
    for place, (image, title) in enumerate(zip(images, titles, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(np.asarray(image.permute(1, 2, 0)))
        axes.set_title(title, fontsize=8)
        axes.axis("off")
    return figure
