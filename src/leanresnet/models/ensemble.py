"""Several networks as one teacher."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leanresnet.models.resnet import ResNet


class Ensemble(nn.Module):
    """The geometric mean of its members' distributions: softmax of the mean of their logits.

    One of the two ways that Hinton, Vinyals and Dean (arXiv:1503.02531), section 1, average an
    ensemble that teaches; it means the same at every temperature.

    Shapes: images as of `ResNet` -> logits (B, 10).
    """

    def __init__(self, members: Sequence[ResNet]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images).float() for member in self.members]).mean(0)
