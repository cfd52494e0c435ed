"""Optimizers and learning-rate schedules: torch's own, chosen by name."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from leanresnet.config import Optimizer, Schedule


class MuonForFilters(torch.optim.Optimizer):
    """Muon on convolution filters, AdamW on all else, as one optimizer.

    torch's Muon takes matrices alone: each filter bank (out, in, k, k) is handed to it as
    the matrix (out, k*k*in), a view of the same memory. Its update is scaled to AdamW's
    size, so that one learning rate fits both (Liu et al., "Muon is Scalable for LLM
    Training", arXiv:2502.16982).
    """

    def __init__(self, filters: Sequence[nn.Parameter], rest: list[dict[str, Any]], settings: Optimizer) -> None:
        self._filters = list(filters)
        self._matrices = [_as_matrix(weight.detach()) for weight in self._filters]
        self._muon = torch.optim.Muon(
            self._matrices,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=settings.betas)
        super().__init__([*self._filters, *(p for group in rest for p in group["params"])], {"lr": settings.lr})
        # The schedule writes to these groups, and they are the two optimizers' own.
        self.param_groups = self._muon.param_groups + self._adamw.param_groups

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for weight, matrix in zip(self._filters, self._matrices, strict=True):
            assert matrix.data_ptr() == weight.data_ptr(), "filters must be in channels_last memory"
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad)
        self._muon.step()
        self._adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self._filters:
            weight.grad = None
        self._adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._muon.load_state_dict(state_dict["muon"])
        self._adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = self._muon.param_groups + self._adamw.param_groups


def _as_matrix(filters: Tensor) -> Tensor:
    """(out, in, k, k) as (out, k*k*in): a view when the memory is channels_last."""
    return filters.permute(0, 2, 3, 1).flatten(1)


def build_optimizer(net: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of `settings.name`; keys that it has no use for are ignored."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    decay, lr = settings.weight_decay, settings.lr
    others_group = {"params": others, "weight_decay": decay if settings.decay_norm_and_bias else 0.0}
    if settings.name == "muon":
        dense = {"params": [p for p in weights if p.ndim == 2], "weight_decay": decay}
        return MuonForFilters([p for p in weights if p.ndim == 4], [dense, others_group], settings)
    groups = [{"params": weights, "weight_decay": decay}, others_group]
    match settings.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=lr)
        case "adadelta":
            return torch.optim.Adadelta(groups, lr=lr, rho=settings.rho)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=settings.betas)
        case "radam":
            return torch.optim.RAdam(groups, lr=lr, betas=settings.betas)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=settings.betas)


class LearningRate:
    """A schedule as the loop uses it: one call a step, and one an epoch for what watches validation."""

    def __init__(
        self, by_step: lr_scheduler.LRScheduler, plateau: lr_scheduler.ReduceLROnPlateau | None = None
    ) -> None:
        self._by_step = by_step
        self._plateau = plateau

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
