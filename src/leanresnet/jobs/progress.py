"""What a person sees of a training: a line for each epoch, the history so far, and a summary at the end."""

import sys
import time

from tqdm import tqdm

from leanresnet.errors import StorageError, warn
from leanresnet.tracking.connection import has_server
from leanresnet.training.results import NOT_KEPT, Outputs, save_history
from leanresnet.training.validation import Metrics

# Without a terminal, the shortest time between two lines.
PAUSE_SECONDS = 10.0


class Progress:
    """The progress of one training, on stderr and in history.csv.

    On a terminal, the line of each epoch stays above the progress bars. Elsewhere, the first epoch has a line, and then
    the first one to end after `PAUSE_SECONDS`. history.csv is renewed after each epoch, but that of an earlier training
    stays until this one has ended, because it belongs to the model beside it; DVC removes both before a stage runs.

    Args:
        epochs: number of the last epoch.
        history: the epochs that were trained before.
        outputs: where the training will write.
    """

    def __init__(self, epochs: int, history: list[Metrics], outputs: Outputs) -> None:
        self._epochs, self._history, self._outputs = epochs, list(history), outputs
        self._done = len(history)
        self._is_live = not outputs.summary.exists()
        self._begun, self._passed = time.monotonic(), 0.0
        self._printed: float | None = None

    def show(self, metrics: Metrics, epoch: int) -> None:
        """Show the metrics of an epoch, which has just ended."""
        self._history.append({name: value for name, value in metrics.items() if name not in NOT_KEPT})
        if self._is_live:
            try:
                save_history(self._history, self._outputs.history)
            except StorageError as error:
                warn(f"the history is not written, training continues: {error}")
        self._passed = time.monotonic() - self._begun
        if self._printed is None or self._passed - self._printed >= PAUSE_SECONDS or sys.stderr.isatty():
            self._printed = self._passed
            left = self._passed / (epoch - self._done) * (self._epochs - epoch)
            # Not `print`, which would write into the bars.
            tqdm.write(f"{line(metrics, epoch, self._epochs)}  {tqdm.format_interval(left)} left", file=sys.stderr)

    def finish(self, best_epoch: int, address: str | None) -> None:
        """Print the summary; `address` is that of the run in MLflow, or None if MLflow has not received it."""
        accuracy = self._history[best_epoch - 1]["val/accuracy"]
        best = f"best epoch {best_epoch} of {self._epochs}, validation {accuracy:.2%}"
        print(
            f"{best}, after {tqdm.format_interval(self._passed)}; the model is in {self._outputs.model}",
            file=sys.stderr,
        )
        if address is not None:
            served = " (served by `leanresnet ui`)" if not has_server() else ""
            print(f"run: {address}{served}", file=sys.stderr)


def line(metrics: Metrics, epoch: int, epochs: int) -> str:
    """Return an epoch as one line."""
    measured = [
        f"{name} loss {metrics[f'{name}/loss']:.3f} accuracy {metrics[f'{name}/accuracy']:.2%}"
        for name in ("train", "val")
    ]
    speed = f"{metrics['images_per_second']:,.0f} images/s"
    return "  ".join([f"epoch {epoch:>{len(str(epochs))}}/{epochs}", *measured, f"lr {metrics['lr']:.3g}", speed])
