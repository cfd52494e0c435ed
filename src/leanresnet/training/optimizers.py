"""Optimizers by name: those of torch, and Muon for convolutions."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanresnet.compute.device import has_fast_bf16
from leanresnet.config.schema import Optimizer
from leanresnet.models.blocks import filters_before_norm


class Muon(torch.optim.Optimizer):
    """Muon for the convolution filters that a batch norm follows, and AdamW for all other parameters.

    Source: Jordan et al., "Muon" (2024). A filter bank (out, in, k, k) is treated as a matrix (out, in*k*k). Its update
    is its momentum with all singular values brought near 1, scaled to `lr` times the norm of the bank, and then the
    bank is scaled back to its norm before the step. A batch norm makes the network independent of that norm, so a
    step only rotates the bank, by about `lr` radians, the same angle in all layers. A step of fixed size would rotate
    small banks less than large ones, and all banks less as their norms grow.

    The other parameters are updated by AdamW with `REST` times the learning rate. Only they have weight decay, which
    would merely enlarge the steps of the filter banks. Filter banks that no batch norm follows belong to them as well,
    because their norm scales their branch: in a pre-activation network the stem, the shortcuts and the second
    convolution of each block, and in all networks the convolutions of squeeze-and-excitation.

    `torch.optim.Muon` accepts only matrices and iterates in bfloat16, which is 60 times slower than float32 on a CPU
    without bfloat16 products.

    Args:
        filters: filter banks (out, in, k, k) for Muon.
        rest: parameter groups for AdamW.
        settings: learning rate, momentum and so on.
    """

    REST = 0.1

    def __init__(self, filters: Sequence[nn.Parameter], rest: list[dict[str, Any]], settings: Optimizer) -> None:
        self._adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=settings.betas, fused=True)
        own = {"params": list(filters), "weight_decay": 0.0}
        super().__init__(
            [own, *self._adamw.param_groups],
            {"lr": settings.lr, "momentum": settings.momentum, "nesterov": settings.nesterov},
        )
        self._share()

    def _share(self) -> None:
        # A schedule sets the learning rates of this optimizer's groups. AdamW gets copies of them with its own rate.
        self._adamw.param_groups = [dict(group) for group in self.param_groups[1:]]
        self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        group = self.param_groups[0]
        weights = [weight for weight in group["params"] if weight.grad is not None]
        # torch's operations on many tensors refuse to have none.
        if weights:
            self._turn(weights, group["lr"], group["momentum"], group["nesterov"])
        for group, own in zip(self.param_groups[1:], self._adamw.param_groups, strict=True):
            own["lr"] = self.REST * group["lr"]
        self._adamw.step()

    def _turn(self, weights: list[Tensor], lr: float, momentum: float, nesterov: bool) -> None:
        gradients: list[Tensor] = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        averages: list[Tensor] = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        directions = list(torch._foreach_lerp(gradients, averages, momentum)) if nesterov else averages
        updates = orthogonalize_filters(directions)
        norms = torch.stack(torch._foreach_norm(weights))
        lengths = torch.stack(torch._foreach_norm(updates)).clamp(min=1e-7)
        torch._foreach_addcmul_(weights, updates, (lr * norms / lengths).unbind(), value=-1)
        torch._foreach_mul_(weights, (norms / torch.stack(torch._foreach_norm(weights))).unbind())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def orthogonalize_filters(banks: list[Tensor]) -> list[Tensor]:
    """Apply `orthogonalize` to filter banks (out, in, k, k) as matrices (out, k*k*in), to those of one shape at once.

    It is computed in bfloat16 where the hardware supports it, independent of the network's precision, because the
    iteration is approximate anyway.
    """
    kind = torch.bfloat16 if has_fast_bf16(banks[0].device) else torch.float32

    def views(stacks: dict[torch.Size, Tensor]) -> list[Tensor]:
        """Return the place of each bank, where the channels come last in memory, as they do in the network."""
        places = {shape: iter(stack.permute(0, 1, 4, 2, 3)) for shape, stack in stacks.items()}
        return [next(places[bank.shape]) for bank in banks]

    stacks = {
        shape: banks[0].new_empty((count, shape[0], *shape[2:], shape[1]), dtype=kind)
        for shape, count in Counter(bank.shape for bank in banks).items()
    }
    torch._foreach_copy_(views(stacks), banks)
    dtype = banks[0].dtype
    return views({shape: orthogonalize(x.flatten(2)).view_as(x).to(dtype) for shape, x in stacks.items()})


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return matrices with the singular vectors of `matrices` and singular values near 1, most of them in 0.7 to 1.2.

    It takes five steps of the quintic Newton-Schulz iteration of Jordan et al., "Muon" (2024).

    Shapes: (N, out, in) -> (N, out, in).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        # Unlike `@`, this does not copy the transposed matrix if there is only one.
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.mT.contiguous() if tall else x


def build_optimizer(net: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer of `settings.name`; settings that it does not have are ignored.

    A group of parameters whose learning rate is a multiple of the schedule's has it as `lr_ratio`.
    """
    trained = [p for p in net.parameters() if p.requires_grad]
    weights = [p for p in trained if p.ndim > 1]
    decay, lr, ratio = settings.weight_decay, settings.lr, settings.bias_lr_ratio
    others_decay = decay if settings.decay_norm_and_bias else 0.0
    scaled = {m.bias for m in net.modules() if isinstance(m, _BatchNorm)} if ratio != 1 else set()
    others = [{"params": [p for p in trained if p.ndim <= 1 and p not in scaled], "weight_decay": others_decay}]
    if scaled:
        biases = [p for p in trained if p in scaled]
        others.append({"params": biases, "weight_decay": others_decay / ratio, "lr": lr * ratio, "lr_ratio": ratio})
    if settings.name == "muon":
        banks = filters_before_norm(net)
        dense = {"params": [p for p in weights if p not in banks], "weight_decay": decay}
        return Muon([p for p in weights if p in banks], [dense, *others], settings)
    groups = [{"params": weights, "weight_decay": decay}, *others]
    match settings.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=lr)
        case "adadelta":
            return torch.optim.Adadelta(groups, lr=lr, rho=settings.rho)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=settings.betas, fused=True)
        case "radam":
            return torch.optim.RAdam(groups, lr=lr, betas=settings.betas)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=settings.betas, fused=True)
