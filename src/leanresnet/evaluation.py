"""What a network gets right, wrong, and how fast: inference only, nothing is trained here."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.distributed import ALONE, World

Metrics = dict[str, float]
# (images, logits, labels) -> one number an image, shape (B,)
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


def loss_each(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, reduction="none")


def correct_each(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float()


class Versus:
    """Measures of a network beside another one, its teacher; the teacher runs once a batch."""

    def __init__(self, teacher: nn.Module) -> None:
        self._teacher = teacher.eval()
        self._last: tuple[Tensor, Tensor] | None = None

    def measures(self) -> dict[str, Measure]:
        return {**MEASURES, "teacher_agreement": self._agreement, "teacher_gap": self._gap}

    def _chosen(self, images: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not images:
            self._last = (images, self._teacher(images).argmax(1))
        return self._last[1]

    def _agreement(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """1 where both choose the same class."""
        return (logits.argmax(1) == self._chosen(images)).float()

    def _gap(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean of this is the teacher's accuracy minus the network's."""
        return (self._chosen(images) == labels).float() - correct_each(images, logits, labels)


MEASURES: dict[str, Measure] = {"loss": loss_each, "accuracy": correct_each}


@torch.no_grad()
def evaluate(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    measures: dict[str, Measure] = MEASURES,
    world: World = ALONE,
) -> Metrics:
    """The mean of each measure over all images, in evaluation mode; the caller's mode is restored.

    The processes of `world` share each batch, and all get the whole result.
    """
    training = net.training
    net.eval()
    sums: dict[str, Tensor] = {}
    count = 0
    for whole_images, whole_labels in batches:
        images, labels = world.share(whole_images), world.share(whole_labels)
        logits = net(images)
        count += len(whole_labels)
        for name, measure in measures.items():
            each = measure(images, logits, labels).sum(dtype=torch.float64)
            sums[name] = sums.get(name, torch.zeros_like(each)) + each
    net.train(training)
    return {name: float(world.total(total)) / count for name, total in sums.items()}


@dataclass(frozen=True)
class Predictions:
    """Shapes: probabilities (N, classes) float32; labels (N,) int64. On the CPU."""

    probabilities: Tensor
    labels: Tensor

    @property
    def chosen(self) -> Tensor:
        return self.probabilities.argmax(1)

    def metrics(self, teacher: "Predictions") -> Metrics:
        """The means of `Versus.measures` over all images, from what both networks said of them."""
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
