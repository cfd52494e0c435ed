"""Sharpness-aware minimisation: the gradient of a step is taken a little uphill."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from leanresnet.config import Sharpness


class SharpnessAware:
    """Weights moved to where the loss is about the greatest within a ball of radius `rho`.

    SAM: Foret et al., arXiv:2010.01412, equation 2, e = rho * g / |g|. Adaptive: Kwon et al.,
    "ASAM", arXiv:2102.11600, equation 8 with T = |w|: e = rho * w^2 * g / |w * g|, which does
    not change when a batch norm lets weights grow.
    """

    def __init__(self, net: nn.Module, settings: Sharpness) -> None:
        self._net = net
        self._rho = settings.rho
        self._adaptive = settings.adaptive

    @contextmanager
    def uphill(self) -> Iterator[None]:
        """Inside, the weights are moved along the gradients they have; afterwards they are what they were.

        So are the buffers: the second pass of a step does not count for batch norm's statistics.
        """
        moved = [p for p in self._net.parameters() if p.grad is not None]
        kept = [*moved, *self._net.buffers()]
        with torch.no_grad():
            before = [tensor.clone() for tensor in kept]
            gradients = [p.grad * p.abs() if self._adaptive else p.grad for p in moved if p.grad is not None]
            scale = self._rho / torch.stack([g.norm() for g in gradients]).norm().clamp(min=1e-12)
            for weight, gradient in zip(moved, gradients, strict=True):
                weight.add_(gradient * (scale * weight.abs() if self._adaptive else scale))
        yield
        with torch.no_grad():
            for tensor, value in zip(kept, before, strict=True):
                tensor.copy_(value)
