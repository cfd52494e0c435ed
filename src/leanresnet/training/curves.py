"""The curves of a training as a matplotlib figure, which needs no display."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leanresnet.text import drawn
from leanresnet.training.validation import Metrics

# The most epochs that have a marker each.
MOST_MARKED = 50


def curves(name: str, history: list[Metrics], best_epoch: int) -> Figure:
    """Plot loss and accuracy by epoch, on training and validation images, below the model's name.

    `limits` sets the range of each axis.
    """
    figure = Figure(figsize=(9, 3.7), layout="constrained")
    figure.suptitle(drawn(name))
    epochs = range(1, len(history) + 1)
    for place, name in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, place)
        by_split = {split: [row[f"{split}/{name}"] for row in history] for split in ("train", "val")}
        for split, values in by_split.items():
            axes.plot(epochs, values, marker="." if len(history) <= MOST_MARKED else "", label=split)
        axes.axvline(best_epoch, color="grey", linestyle=":", label=f"best epoch: {best_epoch}")
        axes.set(xlabel="epoch", ylabel=name, ylim=limits(by_split.values()))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def limits(by_curve: Iterable[Sequence[float]]) -> tuple[float, float] | None:
    """Return the lowest and the highest value of an axis for values by epoch.

    The first fifth of the epochs may lie outside, so that the others can be told apart. None leaves the axis to
    matplotlib, where no value is a finite number.
    """
    later = np.concatenate([np.asarray(values, float)[len(values) // 5 :] for values in by_curve])
    later = later[np.isfinite(later)]
    if not later.size:
        return None
    low, high = float(later.min()), float(later.max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
