"""The curves of a training as a matplotlib figure, which needs no display."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leanresnet.text import drawn
from leanresnet.training.validation import Metrics


def curves(name: str, history: list[Metrics], best_epoch: int) -> Figure:
    """Plot loss and accuracy by epoch, on training and validation images, below the model's name."""
    figure = Figure(figsize=(9, 3.7), layout="constrained")
    figure.suptitle(drawn(name))
    epochs = range(1, len(history) + 1)
    for place, name in enumerate(("loss", "accuracy"), start=1):
        axes = figure.add_subplot(1, 2, place)
        for split in ("train", "val"):
            axes.plot(epochs, [row[f"{split}/{name}"] for row in history], marker=".", label=split)
        axes.axvline(best_epoch, color="grey", linestyle=":", label=f"best epoch: {best_epoch}")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        axes.grid(alpha=0.3)
    return figure
