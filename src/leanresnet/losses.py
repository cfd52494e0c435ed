"""Losses as plain callables, criterion(inputs, logits, labels) -> scalar.

A recipe is a loss handed to the one training loop; the loop never asks which it is.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CrossEntropy:
    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, inputs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)


class DistillationLoss:
    """(1 - alpha) * cross entropy + alpha * T^2 * KL(teacher_T || student_T).

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network"
    (arXiv:1503.02531); T^2 keeps the gradient's size when the temperature changes. The
    teacher sees the same augmented images as the student, stays in evaluation mode and
    gets no gradient.

    Args:
        teacher: a network whose logits have the student's shape (B, 10).
        alpha: weight of the teacher, 0 to 1.
        temperature: T > 0, softens both distributions.
    """

    def __init__(self, teacher: nn.Module, alpha: float, temperature: float, label_smoothing: float) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.alpha = alpha
        self.temperature = temperature
        self.hard = CrossEntropy(label_smoothing)

    def __call__(self, inputs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = F.log_softmax(self.teacher(inputs).float() / self.temperature, dim=1)
        soft = F.log_softmax(logits.float() / self.temperature, dim=1)
        divergence = F.kl_div(soft, target, reduction="batchmean", log_target=True)
        return (1 - self.alpha) * self.hard(inputs, logits, labels) + self.alpha * self.temperature**2 * divergence
