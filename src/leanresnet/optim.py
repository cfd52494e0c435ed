"""Optimizers and learning-rate schedules by name: torch's own, and Muon for convolutions."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from leanresnet.config import Optimizer, Schedule
from leanresnet.device import has_fast_bf16


class Muon(torch.optim.Optimizer):
    """Muon on convolution filters, AdamW on all else, as one optimizer.

    A filter bank (out, in, k, k) is moved as the matrix (out, in*k*k): its momentum with every
    singular value brought near 1 (Jordan et al., "Muon", 2024). Each bank, however large, moves by
    `lr` of its norm and is brought back to that norm: behind it stands a batch norm, which makes
    the network blind to the norm, so what a step does is turn the bank, by about `lr` radians. All
    layers turn alike; a step of fixed size would turn small banks less, and all of them less as
    their norms grow. Weight decay, which such a bank would only feel as a larger step, is for the
    rest, which AdamW moves at `REST` of the learning rate.
    torch's own Muon takes matrices alone and iterates in bfloat16, which a CPU without bfloat16
    products does 60 times slower than in float32.
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
        # A schedule writes to the groups here; AdamW has its own, for its share of the learning rate.
        self._adamw.param_groups = [dict(group) for group in self.param_groups[1:]]
        self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        group = self.param_groups[0]
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            average = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
            direction = weight.grad.lerp(average, group["momentum"]) if group["nesterov"] else average
            matrix = orthogonalize(direction.permute(0, 2, 3, 1).flatten(1))
            out, inner, height, width = weight.shape
            update = matrix.view(out, height, width, inner).permute(0, 3, 1, 2)
            norm = weight.norm()
            weight.sub_(update * (group["lr"] * norm / update.norm().clamp(min=1e-7)))
            weight.mul_(norm / weight.norm())
        for group, own in zip(self.param_groups[1:], self._adamw.param_groups, strict=True):
            own["lr"] = self.REST * group["lr"]
        self._adamw.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def orthogonalize(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of `matrix` and singular values near 1, most of them in 0.7 to 1.2.

    Five steps of Jordan's quintic Newton-Schulz iteration, in bfloat16 where the hardware has
    it, whatever the precision of the network: the iteration is as tolerant as it is approximate.
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    x = wide.bfloat16() if has_fast_bf16(matrix.device) else wide.float()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    x = x if wide is matrix else x.T
    return x.to(matrix.dtype).contiguous()


def build_optimizer(net: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of `settings.name`; keys that it has no use for are ignored."""
    trained = [p for p in net.parameters() if p.requires_grad]
    weights = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    decay, lr = settings.weight_decay, settings.lr
    others_group = {"params": others, "weight_decay": decay if settings.decay_norm_and_bias else 0.0}
    if settings.name == "muon":
        # Convolutions with a bias, those of squeeze-and-excitation, have no batch norm behind them.
        banks = {m.weight for m in net.modules() if isinstance(m, nn.Conv2d) and m.bias is None}
        dense = {"params": [p for p in weights if p not in banks], "weight_decay": decay}
        return Muon([p for p in weights if p in banks], [dense, others_group], settings)
    groups = [{"params": weights, "weight_decay": decay}, others_group]
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


class LearningRate:
    """A schedule as the loop uses it: one call a step, and one an epoch for what watches validation."""

    def __init__(
        self, by_step: lr_scheduler.LRScheduler, plateau: lr_scheduler.ReduceLROnPlateau | None = None
    ) -> None:
        self._by_step = by_step
        self._plateau = plateau

    def state_dict(self) -> dict[str, Any]:
        plateau = None if self._plateau is None else self._plateau.state_dict()
        return {"by_step": self._by_step.state_dict(), "plateau": plateau}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._by_step.load_state_dict(state["by_step"])
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])

    def go_to(self, step: int) -> list[float]:
        """Take so many steps at once, from a fresh start; the learning rate of each group of the optimizer."""
        with warnings.catch_warnings():
            # torch misses the optimizer's steps, which were made elsewhere.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for _ in range(step):
                self._by_step.step()
        return [float(group["lr"]) for group in self._by_step.optimizer.param_groups]

    def step(self) -> None:
        self._by_step.step()

    def end_epoch(self, val_loss: float) -> None:
        if self._plateau is not None:
            self._plateau.step(val_loss)

    @property
    def value(self) -> float:
        return float(self._by_step.optimizer.param_groups[0]["lr"])


def build_schedule(optimizer: torch.optim.Optimizer, settings: Schedule, epochs: int, steps: int) -> LearningRate:
    """The schedule of `settings.name` over `epochs` epochs of `steps` steps.

    The learning rate rises linearly during `warmup_epochs`; for one-cycle they are the
    rising part of the cycle. A cosine's first restart comes `restart_epochs` after that.
    """
    peak = optimizer.param_groups[0]["lr"]
    warmup = round(settings.warmup_epochs * steps)
    floor = peak * settings.final_ratio
    if settings.name == "onecycle":
        return LearningRate(
            lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=peak,
                total_steps=epochs * steps + 1,
                # The peak comes at step warmup - 1, and torch divides by that.
                pct_start=max(warmup, 2) / (epochs * steps + 1),
                cycle_momentum=False,
                div_factor=25,
                final_div_factor=1 / (25 * settings.final_ratio),
            )
        )
    main: lr_scheduler.LRScheduler
    match settings.name:
        case "step":
            main = lr_scheduler.StepLR(optimizer, settings.step_epochs * steps, settings.factor)
        case "multistep":
            marks = [epoch * steps - warmup for epoch in settings.milestones]
            main = lr_scheduler.MultiStepLR(optimizer, marks, settings.factor)
        case "cosine_restarts":
            main = lr_scheduler.CosineAnnealingWarmRestarts(
                optimizer, settings.restart_epochs * steps, settings.restart_mult, eta_min=floor
            )
        case "linear":
            length = max(1, epochs * steps - warmup)
            main = lr_scheduler.LambdaLR(
                optimizer, lambda step: max(settings.final_ratio, 1 - (1 - settings.final_ratio) * step / length)
            )
        case "constant" | "plateau":
            main = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    if settings.name == "plateau":
        # Multiplicative warm-up alone, so that a reduction found by the plateau stays.
        rise = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        plateau = lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=settings.factor, patience=settings.patience, min_lr=floor
        )
        return LearningRate(rise, plateau)
    if warmup == 0:
        return LearningRate(main)
    rise = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return LearningRate(lr_scheduler.SequentialLR(optimizer, [rise, main], [warmup]))
