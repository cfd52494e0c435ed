"""Sharpness-aware minimization: a step uses the gradient at nearby weights where the loss is about the highest."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from leanresnet.config.schema import Sam


class SharpnessAware:
    """Perturbation of the weights w to the point with the highest loss, to first order, in a ball of radius `rho`.

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
        moved: dict[str, Tensor] = {name: p for name, p in self._net.named_parameters() if p.grad is not None}
        weights = list(moved.values())
        with torch.no_grad():
            # A foreach operation takes tensors of one type at a time, and some buffers are integers.
            kept = [*weights, *self._net.buffers()]
            kinds = [[tensor for tensor in kept if tensor.dtype == kind] for kind in {each.dtype for each in kept}]
            before = [[torch.empty_like(tensor) for tensor in tensors] for tensors in kinds]
            for tensors, values in zip(kinds, before, strict=True):
                torch._foreach_copy_(values, tensors)
            torch._foreach_add_(weights, self._perturbations(moved))
        yield
        with torch.no_grad():
            for tensors, values in zip(kinds, before, strict=True):
                torch._foreach_copy_(tensors, values)

    def _perturbations(self, moved: dict[str, Tensor]) -> list[Tensor]:
        """Return e of each parameter, see the class."""
        result = list(torch._foreach_mul([p.grad for p in moved.values() if p.grad is not None], 1.0))
        names = [name for name in moved if self._adaptive and not name.endswith("bias")]
        # Where T = 1, nothing is multiplied; torch's operations on many tensors refuse to have none.
        if names:
            scaled = [e for name, e in zip(moved, result, strict=True) if name in names]
            scales = list(torch._foreach_add(torch._foreach_abs([moved[name] for name in names]), self.FLOOR))
            torch._foreach_mul_(scaled, scales)
        length = self._rho / torch.stack(torch._foreach_norm(result)).norm().clamp(min=1e-12)
        if names:
            torch._foreach_mul_(scaled, scales)
        torch._foreach_mul_(result, length)
        return result
