"""Learning-rate schedules by name, all of them from torch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from leanresnet.config.schema import Schedule


class LearningRate:
    """A schedule as the loop uses it: `step` is called after each step and `end_epoch` after each epoch.

    The learning rate is a function of the number of the step. The state holds only that number and the state of
    `plateau`, so a training can be resumed under the schedule of more epochs.

    Args:
        rates: the learning rate of each step; it stays constant after the last one. A group of parameters that has an
            `lr_ratio` gets its multiple.
        plateau: may reduce the learning rate after the last of `rates`, or None. Epochs that end earlier, during the
            warm-up, do not count for it.
    """

    def __init__(
        self, optimizer: Optimizer, rates: Sequence[float], plateau: lr_scheduler.ReduceLROnPlateau | None = None
    ) -> None:
        self._optimizer = optimizer
        self._rates = rates
        self._plateau = plateau
        self._go_to(0)

    def state_dict(self) -> dict[str, Any]:
        plateau = None if self._plateau is None else self._plateau.state_dict()
        return {"step": self._step, "plateau": plateau}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state, after that of the optimizer, which holds the learning rate that a plateau has set."""
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])
        self._go_to(state["step"])

    def _go_to(self, step: int) -> None:
        self._step = step
        if step < len(self._rates):
            for group in self._optimizer.param_groups:
                group["lr"] = self._rates[step] * group.get("lr_ratio", 1.0)

    def step(self) -> None:
        self._go_to(self._step + 1)

    def end_epoch(self, val_loss: float) -> None:
        if self._plateau is not None and self._step >= len(self._rates):
            self._plateau.step(val_loss)

    @property
    def value(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])


def build_schedule(optimizer: Optimizer, settings: Schedule, epochs: int, steps: int) -> LearningRate:
    """Return the schedule of `settings.name` over `epochs` epochs of `steps` steps.

    The learning rate rises linearly during the first `warmup_epochs`; for onecycle they are the rising part of the
    cycle. After the warm-up, cosine and linear fall until the end, the first restart of cosine_restarts comes
    `restart_epochs` later, and a plateau is detected only from then on.
    """
    peak = float(optimizer.param_groups[0]["lr"])
    warmup, total = round(settings.warmup_epochs * steps), epochs * steps
    # torch's schedules compute each learning rate from the previous one, which they keep in an optimizer.
    carrier = torch.optim.SGD([torch.zeros(1)], lr=peak)
    schedule = _torch_schedule(carrier, settings, warmup, total, steps)
    # torch warns if a schedule steps before its optimizer does.
    carrier.step()
    plateau = None
    if settings.name == "plateau":
        floors = [group["lr"] * settings.final_ratio for group in optimizer.param_groups]
        plateau = lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=settings.factor, patience=settings.patience, min_lr=floors
        )
        total = warmup
    rates = [carrier.param_groups[0]["lr"]]
    for _ in range(total):
        schedule.step()
        rates.append(carrier.param_groups[0]["lr"])
    return LearningRate(optimizer, rates, plateau)


def _torch_schedule(
    optimizer: Optimizer, settings: Schedule, warmup: int, total: int, steps: int
) -> lr_scheduler.LRScheduler:
    """Return torch's schedule over `total` steps, `steps` per epoch, of which the first `warmup` are the warm-up."""
    peak = optimizer.param_groups[0]["lr"]
    floor = peak * settings.final_ratio
    length = max(1, total - warmup)
    if settings.name == "onecycle":
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=peak,
            total_steps=total + 1,
            # The peak is at step warmup - 1, and torch divides by that number.
            pct_start=max(warmup, 2) / (total + 1),
            cycle_momentum=False,
            div_factor=25,
            final_div_factor=1 / (25 * settings.final_ratio),
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
    if warmup == 0:
        return main
    rise = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, main], [warmup])
