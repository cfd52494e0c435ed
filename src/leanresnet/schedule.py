"""Learning-rate schedules by name, all of them torch's."""

import warnings
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from leanresnet.config import Schedule


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


def build_schedule(optimizer: Optimizer, settings: Schedule, epochs: int, steps: int) -> LearningRate:
    """The schedule of `settings.name` over `epochs` epochs of `steps` steps.

    The learning rate rises linearly during `warmup_epochs`; for one-cycle they are the
    rising part of the cycle. Cosine and linear fall from there to the end; a first restart comes
    `restart_epochs` after the warm-up.
    """
    peak = optimizer.param_groups[0]["lr"]
    warmup = round(settings.warmup_epochs * steps)
    floor = peak * settings.final_ratio
    length = max(1, epochs * steps - warmup)
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
        case "cosine":
            main = lr_scheduler.CosineAnnealingLR(optimizer, length, eta_min=floor)
        case "linear":
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
