"""The predictions of a trained network, their confidence, and the network's speed."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.training.validation import Metrics


@dataclass(frozen=True)
class Predictions:
    """The predictions for the images of a split, on the CPU.

    Attributes:
        probabilities: (N, classes) float32.
        labels: (N,) int64, the true classes.
    """

    probabilities: Tensor
    labels: Tensor

    @property
    def chosen(self) -> Tensor:
        """The predicted classes, (N,) int64."""
        return self.probabilities.argmax(1)

    def metrics(self, teacher: "Predictions") -> Metrics:
        """Return the means of `TeacherComparison.measures` over all images, from the predictions of both networks."""
        log_probabilities = self.probabilities.double().clamp(min=1e-38).log()
        right, taught = self.chosen == self.labels, teacher.chosen == teacher.labels
        return {
            "loss": float(F.nll_loss(log_probabilities, self.labels)),
            "accuracy": float(right.double().mean()),
            "teacher_agreement": float((self.chosen == teacher.chosen).double().mean()),
            "teacher_gap": float((taught.double() - right.double()).mean()),
        }

    def confusion(self) -> Tensor:
        """Return counts (classes, classes), a row per true class and a column per predicted class."""
        classes = self.probabilities.shape[1]
        return torch.bincount(self.labels * classes + self.chosen, minlength=classes**2).view(classes, classes)

    def calibration_error(self, bins: int) -> float:
        """Return the expected calibration error over `bins` equal bins of confidence.

        Source: Guo et al., "On Calibration of Modern Neural Networks" (arXiv:1706.04599).
        """
        confidence, chosen = self.probabilities.max(1)
        bin_of = (confidence * bins).long().clamp(max=bins - 1)
        right = (chosen == self.labels).double()
        gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of, confidence.double() - right)
        return float(gaps.abs().sum()) / len(self.labels)

    def mistakes(self, count: int) -> Tensor:
        """Return the indices of the wrong predictions of highest confidence, at most `count`."""
        confidence, chosen = self.probabilities.max(1)
        wrong = (chosen != self.labels).nonzero().flatten()
        return wrong[confidence[wrong].argsort(descending=True, stable=True)][:count]


@torch.no_grad()
def predict(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Predictions:
    """Run `net` in evaluation mode on batches of images (B, 3, 32, 32) and labels (B,)."""
    net.eval()
    parts = [(net(images).float().softmax(1).cpu(), labels.cpu()) for images, labels in batches]
    probabilities, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return Predictions(probabilities, labels)


@torch.no_grad()
def measure_speed(net: nn.Module, images: Tensor, repeats: int) -> Metrics:
    """Measure the median time of `repeats` forward passes in evaluation mode, after two passes to warm up.

    Args:
        images: (B, 3, 32, 32), on the device of `net`.

    Returns:
        latency_ms: milliseconds for one image.
        throughput: images per second for the whole batch.
    """
    net.eval()
    return {
        "latency_ms": 1000 * median_seconds(net, images[:1], repeats),
        "throughput": len(images) / median_seconds(net, images, repeats),
    }


def median_seconds(run: Callable[[Tensor], Tensor], images: Tensor, repeats: int) -> float:
    """Return the median time of `repeats` calls of `run(images)`, after two calls to warm up."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        run(images).sum().item()  # .item() waits for the device
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])
