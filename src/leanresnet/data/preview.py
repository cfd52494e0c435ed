"""The picture of a data set as a matplotlib figure, which needs no display."""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from leanresnet.data.splits import Split
from leanresnet.text import drawn

MOST_CLASSES = 100


def samples(split: Split) -> Figure:
    """Draw the first image of each class, of at most `MOST_CLASSES` classes."""
    first = split.first_of_classes(MOST_CLASSES)
    columns = 5 if len(first) <= 20 else 10
    return image_grid(split.images[first], [drawn(split.classes[label]) for label in split.labels[first]], columns)


def image_grid(images: Tensor, titles: list[str], columns: int) -> Figure:
    """Draw images (N, 3, H, W) uint8 in rows of `columns`, each below its title."""
    rows = max(1, -(-len(titles) // columns))
    figure = Figure(figsize=(1.5 * columns, 1.8 * rows), layout="constrained")
    for place, (image, title) in enumerate(zip(images, titles, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(np.asarray(image.permute(1, 2, 0)))
        axes.set_title(title, fontsize=8)
        axes.axis("off")
    return figure
