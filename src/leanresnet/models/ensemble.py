"""Several networks as one teacher."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leanresnet.models.resnet import ResNet


class Ensemble(nn.Module):
    """An ensemble whose logits are the mean of its members' logits.

    The softmax of this is the normalized geometric mean of the members' distributions, at every temperature. It is one
    of the two ways in which Hinton, Vinyals and Dean (arXiv:1503.02531), section 1, average an ensemble of teachers.

    Shapes: images (B, 3, 32, 32) in 0..255, see `ResNet` -> logits (B, classes).
    """

    def __init__(self, members: Sequence[ResNet]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images).float() for member in self.members]).mean(0)
