"""Sharpness-aware minimisation: a step takes its gradient where the loss nearby is about the highest."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from leanresnet.config.schema import Sam


class SharpnessAware:
    """Perturbation of weights w to where, to first order, the loss is highest within a ball of radius `rho`.

    SAM adds e = rho * g / |g| for the gradient g: Foret et al., arXiv:2010.01412, equation 2. The adaptive form adds
    e = rho * T^2 * g / |T * g|: Kwon et al., "ASAM", arXiv:2102.11600, equation 8. It hardly changes when weights
    before a batch norm grow. As in their code, T = |w| + `FLOOR`, and T = 1 for biases.
    """

    FLOOR = 0.01

    def __init__(self, net: nn.Module, settings: Sam) -> None:
        self._net = net
        self._rho = settings.rho
        self._adaptive = settings.adaptive

    @contextmanager
    def perturbed_weights(self) -> Iterator[None]:
        """Perturb the weights along their gradients, and restore them on exit.

        The buffers are restored as well, so that the second pass of a step does not count for batch norm's statistics.
        """
        moved = {name: p for name, p in self._net.named_parameters() if p.grad is not None}
        kept = [*moved.values(), *self._net.buffers()]
        with torch.no_grad():
            before = [tensor.clone() for tensor in kept]
            scales = [self._scale(name, p) for name, p in moved.items()]
            gradients = [p.grad * t for p, t in zip(moved.values(), scales, strict=True) if p.grad is not None]
            length = self._rho / torch.stack([g.norm() for g in gradients]).norm().clamp(min=1e-12)
            for parameter, gradient, t in zip(moved.values(), gradients, scales, strict=True):
                parameter.add_(gradient * t * length)
        yield
        with torch.no_grad():
            for tensor, value in zip(kept, before, strict=True):
                tensor.copy_(value)

    def _scale(self, name: str, parameter: Tensor) -> Tensor | float:
        """Return T of a parameter, see the class."""
        if not self._adaptive or name.endswith("bias"):
            return 1.0
        return parameter.abs() + self.FLOOR
