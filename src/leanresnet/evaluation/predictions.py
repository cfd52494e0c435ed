"""What a trained network says of each image, how sure it is, and how fast."""

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
    """Shapes: probabilities (N, classes) float32; labels (N,) int64. On the CPU."""

    probabilities: Tensor
    labels: Tensor

    @property
    def chosen(self) -> Tensor:
        return self.probabilities.argmax(1)

    def metrics(self, teacher: "Predictions") -> Metrics:
        """The means of `TeacherComparison.measures` over all images, from what both networks said of them."""
        log_probabilities = self.probabilities.double().clamp(min=1e-38).log()
        right, taught = self.chosen == self.labels, teacher.chosen == teacher.labels
        return {
            "loss": float(F.nll_loss(log_probabilities, self.labels)),
            "accuracy": float(right.double().mean()),
            "teacher_agreement": float((self.chosen == teacher.chosen).double().mean()),
            "teacher_gap": float((taught.double() - right.double()).mean()),
        }

    def confusion(self) -> Tensor:
        """(classes, classes) counts, a row a true class, a column a predicted one."""
        classes = self.probabilities.shape[1]
        return torch.bincount(self.labels * classes + self.chosen, minlength=classes**2).view(classes, classes)

    def calibration_error(self, bins: int) -> float:
        """Expected calibration error over equal bins of confidence (Guo et al., arXiv:1706.04599)."""
        confidence, chosen = self.probabilities.max(1)
        bin_of = (confidence * bins).long().clamp(max=bins - 1)
        right = (chosen == self.labels).double()
        gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of, confidence.double() - right)
        return float(gaps.abs().sum()) / len(self.labels)

    def mistakes(self, count: int) -> Tensor:
        """Indices of the wrong answers given with most confidence, at most `count`."""
        confidence, chosen = self.probabilities.max(1)
        wrong = (chosen != self.labels).nonzero().flatten()
        return wrong[confidence[wrong].argsort(descending=True, stable=True)][:count]


@torch.no_grad()
def predict(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Predictions:
    net.eval()
    parts = [(net(images).float().softmax(1).cpu(), labels.cpu()) for images, labels in batches]
    probabilities, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return Predictions(probabilities, labels)


@torch.no_grad()
def measure_speed(net: nn.Module, images: Tensor, repeats: int) -> Metrics:
    """Median of `repeats` forward passes, after two that do not count.

    Returns:
        latency_ms: milliseconds for one image; throughput: images a second for the whole batch.
    """
    net.eval()
    return {
        "latency_ms": 1000 * median_seconds(net, images[:1], repeats),
        "throughput": len(images) / median_seconds(net, images, repeats),
    }


def median_seconds(run: Callable[[Tensor], Tensor], images: Tensor, repeats: int) -> float:
    """Of so many runs, after two that do not count."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        run(images).sum().item()  # .item() waits for the device
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])
