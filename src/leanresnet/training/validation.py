"""Measures of a network on images, such as loss and accuracy, as means over all images."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext

Metrics = dict[str, float]
# (images, logits, labels) -> one number per image, shape (B,)
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


def loss_each(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, reduction="none")


def correct_each(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float()


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the number of correct predictions, a scalar.

    Args:
        labels: classes (B,), or shares of classes (B, classes), of which the largest counts as the correct class.
    """
    right = labels if labels.ndim == 1 else labels.argmax(1)
    return (logits.detach().argmax(1) == right).sum()


class TeacherComparison:
    """Measures that compare a network with its teacher, which runs once for each batch of images.

    The predictions are kept for the validations of the later epochs, together with the images that they belong to.
    """

    def __init__(self, teacher: nn.Module) -> None:
        self._teacher = teacher.eval()
        # By the place of the images in memory, which is not used for others as long as they are kept.
        self._known: dict[tuple[torch.device, int, torch.Size], tuple[Tensor, Tensor]] = {}

    def measures(self) -> dict[str, Measure]:
        return {**MEASURES, "teacher_agreement": self._agreement, "teacher_gap": self._gap}

    def _chosen(self, images: Tensor) -> Tensor:
        place = images.device, images.data_ptr(), images.shape
        if place not in self._known:
            self._known[place] = images, self._teacher(images).argmax(1)
        return self._known[place][1]

    def _agreement(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return 1 for each image for which both predict the same class, else 0."""
        return (logits.argmax(1) == self._chosen(images)).float()

    def _gap(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Return a number per image whose mean is the accuracy of the teacher minus that of the network."""
        return (self._chosen(images) == labels).float() - correct_each(images, logits, labels)


MEASURES: dict[str, Measure] = {"loss": loss_each, "accuracy": correct_each}


@torch.no_grad()
def evaluate(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    measures: dict[str, Measure] = MEASURES,
    world: DistributedContext = SINGLE_PROCESS,
) -> Metrics:
    """Return the mean of each measure over all images.

    The network runs in evaluation mode, and its previous mode is restored.

    Args:
        batches: pairs of images (B, 3, 32, 32) and labels (B,), the same in each process of `world`. Each process
            computes its shard of a batch, and all return the whole result.
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
