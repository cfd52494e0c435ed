"""What a network gets right, as means over all images: what a training asks of validation."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext

Metrics = dict[str, float]
# (images, logits, labels) -> one number an image, shape (B,)
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


def loss_each(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, reduction="none")


def correct_each(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float()


class TeacherComparison:
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
    world: DistributedContext = SINGLE_PROCESS,
) -> Metrics:
    """The mean of each measure over all images, in evaluation mode; the caller's mode is restored.

    The processes of `world` share each batch, and all get the whole result.
    """
    training = net.training
    net.eval()
    sums: dict[str, Tensor] = {}
    count = 0
    for whole_images, whole_labels in batches:
        images, labels = world.shard(whole_images), world.shard(whole_labels)
        logits = net(images)
        count += len(whole_labels)
        for name, measure in measures.items():
            each = measure(images, logits, labels).sum(dtype=torch.float64)
            sums[name] = sums.get(name, torch.zeros_like(each)) + each
    net.train(training)
    return {name: float(world.sum_over_processes(total)) / count for name, total in sums.items()}
