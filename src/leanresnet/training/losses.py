"""Losses as plain callables, criterion(net, images, labels) -> (scalar, logits).

The training loop takes a loss as an argument and does not know which one it is. A loss runs the network itself,
because it may need more than the logits, such as the feature maps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.config.schema import same_side


class CrossEntropy:
    """Cross entropy with label smoothing, for labels (B,), or (B, classes) shares of classes."""

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(images)
        return self.of(logits, labels), logits

    def of(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


class DistillationLoss:
    """Distillation loss of a student.

    loss = (1 - alpha) * cross entropy + alpha * T^2 * divergence + attention * attention_distance

    The divergence is KL(teacher_T || student_T) of Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural
    Network" (arXiv:1503.02531), or the one of `decoupled` if `beta` is given. The factor T^2 keeps the size of the
    gradient when the temperature changes. The teacher processes the same augmented images as the student, in
    evaluation mode and without gradient.

    Args:
        teacher: a network with logits (B, classes). With `attention`, teacher and student have
            `ResNet.forward_features`, and some of their feature maps have the same side.
        alpha: weight of the teacher, 0 to 1.
        temperature: T > 0, softens both distributions.
        beta: weight of the divergence among the wrong classes, see `decoupled`; None for the plain divergence.
        label_smoothing: of the cross entropy.
        attention: weight of the distance of the attention maps, >= 0.
    """

    def __init__(
        self,
        teacher: nn.Module,
        alpha: float,
        temperature: float,
        beta: float | None,
        label_smoothing: float,
        attention: float = 0.0,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.alpha = alpha
        self.temperature = temperature
        self.beta = beta
        self.attention = attention
        self.hard = CrossEntropy(label_smoothing)

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        maps, logits = _maps(net, images) if self.attention else ([], net(images))
        with torch.no_grad():
            taught_maps, taught = _maps(self.teacher, images) if self.attention else ([], self.teacher(images))
            target = F.log_softmax(taught.float() / self.temperature, dim=1)
        soft = F.log_softmax(logits.float() / self.temperature, dim=1)
        if self.beta is None:
            divergence = F.kl_div(soft, target, reduction="batchmean", log_target=True)
        else:
            divergence = decoupled(soft, target, labels, self.beta)
        loss = (1 - self.alpha) * self.hard.of(logits, labels) + self.alpha * self.temperature**2 * divergence
        if self.attention:
            loss = loss + self.attention * attention_distance(maps, taught_maps)
        return loss, logits


def _maps(net: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    features: tuple[list[Tensor], Tensor] = net.forward_features(images)  # type: ignore[operator]
    return features


def attention_distance(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Squared distance of the attention maps of two networks, summed over pairs of layers, averaged over images.

    The attention map of a layer is the mean of its squared activations over channels, normalized to a vector of length
    1, so each layer contributes 0 to 2. Source: Zagoruyko and Komodakis, "Paying More Attention to Attention"
    (arXiv:1612.03928), equation 2, with squared distances as in their code.

    Args:
        student, teacher: feature maps of the layers, each (B, C, side, side). Layers are paired by `same_side`; there
            must be at least one pair.
    """
    pairs = same_side(*([each.shape[-1] for each in maps] for maps in (student, teacher)))
    distances = [_attention(student[own]) - _attention(teacher[other]) for own, other in pairs]
    return torch.stack([each.square().sum(1).mean() for each in distances]).sum()


def _attention(activations: Tensor) -> Tensor:
    return F.normalize(activations.float().square().mean(1).flatten(1))


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Decoupled divergence of the student from the teacher, averaged over images.

    It is the KL divergence of the pair (right class, all wrong classes), plus `beta` times the KL divergence among the
    wrong classes. If `beta` were the probability that the teacher gives to the wrong classes, image by image, this
    would be the plain KL divergence; there, the wrong classes hardly count for images of which the teacher is certain.

    Source: Zhao et al., "Decoupled Knowledge Distillation" (arXiv:2203.08679), equation 7 with alpha = 1.

    Args:
        student, teacher: log probabilities (B, classes).
        labels: (B,) classes, or (B, classes) shares, of which the largest is the right class.
        beta: weight of the divergence among the wrong classes.
    """
    right = (labels if labels.ndim == 1 else labels.argmax(1))[:, None]
    # A finite number avoids inf - inf; its probability rounds to 0 all the same.
    absent = torch.zeros_like(student).scatter(1, right, -1e4)

    def parts(logs: Tensor) -> tuple[Tensor, Tensor]:
        wrong = torch.logsumexp(logs + absent, 1, keepdim=True)
        return torch.cat([logs.gather(1, right), wrong], 1), logs + absent - wrong

    split, among = parts(student)
    taught_split, taught_among = parts(teacher)
    certainty = F.kl_div(split, taught_split, reduction="batchmean", log_target=True)
    return certainty + beta * F.kl_div(among, taught_among, reduction="batchmean", log_target=True)
