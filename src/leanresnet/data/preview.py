"""The picture of a data set as a matplotlib figure, which needs no display."""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from leanresnet.data.splits import Split
from leanresnet.text import abbreviated, drawn

MOST_CLASSES = 100
# The side of an image and the height of its title, as shares of a column's width.
IMAGE, TITLE = 0.9, 0.3


def samples(split: Split) -> Figure:
    """Draw the first image of each class, of at most `MOST_CLASSES` classes."""
    first = split.first_of_classes(MOST_CLASSES)
    columns = 5 if len(first) <= 20 else 10
    return image_grid(
        split.images[first], [drawn(abbreviated(split.classes[label])) for label in split.labels[first]], columns
    )


def image_grid(images: Tensor, titles: list[str], columns: int) -> Figure:
    """Draw images (N, 3, H, W) uint8 in rows of `columns`, each below its title of at most two lines.

    All share one pair of axes, because matplotlib takes seconds to arrange a hundred.
    """
    rows = max(1, -(-len(titles) // columns))
    figure = Figure(figsize=(1.5 * columns, 1.8 * rows), layout="constrained")
    axes = figure.add_subplot()
    for place, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(place, columns)
        left, top = column - IMAGE / 2, row * (IMAGE + TITLE)
        axes.imshow(np.asarray(image.permute(1, 2, 0)), extent=(left, left + IMAGE, top + IMAGE, top))
        axes.text(column, top - 0.04, title, ha="center", va="bottom", fontsize=8)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows * (IMAGE + TITLE) - TITLE, -TITLE))
    axes.axis("off")
    return figure
