"""Losses as plain callables, criterion(net, images, labels) -> (scalar, logits).

A recipe is a loss handed to the one training loop; the loop never asks which it is. A loss
runs the network itself, since one may want more of it than its answers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.config.schema import same_side


class CrossEntropy:
    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(images)
        return self.of(logits, labels), logits

    def of(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


class DistillationLoss:
    """(1 - alpha) * cross entropy + alpha * T^2 * divergence of the student's answers from the teacher's,
    + attention * distance of their attention maps.

    The divergence is KL(teacher_T || student_T) of Hinton, Vinyals and Dean, "Distilling the
    Knowledge in a Neural Network" (arXiv:1503.02531), or, with `beta`, that of `decoupled`;
    T^2 keeps the gradient's size when the temperature changes. For the maps see
    `attention_distance`. The teacher sees the same augmented images as the student, stays in
    evaluation mode and gets no gradient.

    Args:
        teacher: a network whose logits have the student's shape (B, 10). With `attention`, both
            have `ResNet.forward_features`, some of the same side.
        alpha: weight of the teacher, 0 to 1.
        temperature: T > 0, softens both distributions.
        beta: weight of the wrong classes beside the right one, or None.
        attention: weight of the maps, >= 0.
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
    found: tuple[list[Tensor], Tensor] = net.forward_features(images)  # type: ignore[operator]
    return found


def attention_distance(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Squared distance of two networks' attention maps, 0 to 2 a layer, summed over layers; the mean over images.

    An attention map is the mean over channels of a layer's squared activations, as a vector of
    length 1: Zagoruyko and Komodakis, "Paying More Attention to Attention" (arXiv:1612.03928),
    equation 2, with squares as in their code. Layers are paired by `same_side`; at least one pair is needed.

    Shapes: each (B, any, side, side).
    """
    pairs = same_side(*([each.shape[-1] for each in maps] for maps in (student, teacher)))
    distances = [_attention(student[own]) - _attention(teacher[other]) for own, other in pairs]
    return torch.stack([each.square().sum(1).mean() for each in distances]).sum()


def _attention(activations: Tensor) -> Tensor:
    return F.normalize(activations.float().square().mean(1).flatten(1))


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor, beta: float) -> Tensor:
    """KL of (right class, any wrong one), plus beta times KL among the wrong classes; the mean over images.

    Zhao et al., "Decoupled Knowledge Distillation" (arXiv:2203.08679), equation 7 with alpha = 1.
    A beta that is the teacher's doubt of the label, image by image, would give the plain KL
    back: a teacher that is sure hides what it knows of the other classes, and this shows it.

    Shapes: student, teacher (B, 10) log probabilities; labels (B,), or (B, 10) shares, of which
        the largest is the right class.
    """
    right = (labels if labels.ndim == 1 else labels.argmax(1))[:, None]
    # Finite, so that no infinity meets another; the probability is 0 all the same.
    absent = torch.zeros_like(student).scatter(1, right, -1e4)

    def parts(logs: Tensor) -> tuple[Tensor, Tensor]:
        wrong = torch.logsumexp(logs + absent, 1, keepdim=True)
        return torch.cat([logs.gather(1, right), wrong], 1), logs + absent - wrong

    split, among = parts(student)
    taught_split, taught_among = parts(teacher)
    certainty = F.kl_div(split, taught_split, reduction="batchmean", log_target=True)
    return certainty + beta * F.kl_div(among, taught_among, reduction="batchmean", log_target=True)
