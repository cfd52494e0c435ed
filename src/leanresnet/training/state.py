"""The state of a training: what the loop counts, and everything from which it can be resumed."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from leanresnet.errors import DivergedError
from leanresnet.training.augmentation import NETWORK, seed_of
from leanresnet.training.schedules import LearningRate
from leanresnet.training.validation import Metrics

# What the loop has found so far, by the names of TrainState's attributes.
RESULTS = ("epoch", "rate", "history", "best_epoch", "best_weights", "seconds")


class LossWatch:
    """Detects a loss that is NaN or infinite.

    On a GPU, the loss of a step is checked while the GPU computes the next step, so that the GPU does not wait.
    """

    def __init__(self) -> None:
        self._on_its_way: tuple[Tensor, torch.cuda.Event, int, float] | None = None

    def see(self, loss: Tensor, step: int, rate: float) -> None:
        """Check the loss of a step, on a GPU the one of the previous step.

        Args:
            loss: scalar.
            step: number of the step in its epoch, from 1.
            rate: the learning rate.

        Raises:
            DivergedError: if the checked loss is NaN or infinite.
        """
        self.settle()
        if not loss.is_cuda:
            _check(float(loss), step, rate)
            return
        value = torch.empty((), dtype=loss.dtype, pin_memory=True)
        value.copy_(loss, non_blocking=True)
        event = torch.cuda.Event()
        # The copy is on the stream of the loss, and the current device may be another one.
        event.record(torch.cuda.current_stream(loss.device))
        self._on_its_way = value, event, step, rate

    def settle(self) -> None:
        """Wait for the loss that is not checked yet, if there is one, and check it.

        Raises:
            DivergedError: if it is NaN or infinite.
        """
        if self._on_its_way is not None:
            value, event, step, rate = self._on_its_way
            self._on_its_way = None
            event.synchronize()
            _check(float(value), step, rate)


def _check(loss: float, step: int, rate: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"step {step}: the training loss is {loss} at learning rate {rate:g}")


@dataclass
class EpochMeter:
    """Losses and numbers of correct predictions of the steps of an epoch.

    The tensors stay on the device until `metrics` waits for them.

    Attributes:
        losses, hits: loss and number of correct predictions of each step, scalars.
        images: number of images learned from so far.
        seconds: time of the steps; after validation it includes the time for batch norm's statistics.
    """

    losses: list[Tensor] = field(default_factory=list)
    hits: list[Tensor] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0
    watch: LossWatch = field(default_factory=LossWatch)

    def add(self, loss: Tensor, hits: Tensor, images: int) -> None:
        self.losses.append(loss)
        self.hits.append(hits)
        self.images += images

    def metrics(self) -> Metrics:
        """Return `loss` and `accuracy`, as means over the augmented images, each measured in its step."""
        loss, hits = torch.stack(self.losses).mean(), torch.stack(self.hits).sum()
        return {"loss": float(loss), "accuracy": float(hits) / self.images}

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": torch.stack(self.losses) if self.losses else torch.empty(0),
            "hits": torch.stack(self.hits) if self.hits else torch.empty(0),
            "images": self.images,
            "seconds": self.seconds,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> "EpochMeter":
        losses, hits = (list(state[name].to(device).unbind()) for name in ("losses", "hits"))
        return cls(losses, hits, state["images"], state["seconds"])


class TrainState:
    """The state of a training between two steps: everything on which the next step depends, and the results so far.

    Args:
        net, optimizer, schedule: what is trained, and how.
        others: by name, what else has a state that changes in each step, or None.
        seed: seed of what the network draws.

    Attributes:
        epoch: number of the current epoch, from 1.
        meter: losses and correct predictions of its steps so far.
        rate: the learning rate at the start of the epoch.
        history: one row of metrics for each finished epoch.
        best_epoch, best_weights: the epoch with the highest validation accuracy, the first one of several, and its
            weights.
        seconds: training time of the finished epochs, including batch norm's statistics of averaged weights.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LearningRate,
        others: Mapping[str, Any],
        seed: int,
    ) -> None:
        # The order is that of loading: a schedule sets the learning rates of the optimizer, so it comes after it.
        self._parts: dict[str, Any] = {"net": net, "optimizer": optimizer, "schedule": schedule}
        self._parts |= {name: part for name, part in others.items() if part is not None}
        self._schedule = schedule
        self._seed = seed
        self.device = next(net.parameters()).device
        self.epoch = 1
        self.meter = EpochMeter()
        self.rate = schedule.value
        self.history: list[Metrics] = []
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        self.seconds = 0.0
        self.seed_draws()

    @property
    def step(self) -> int:
        """Number of finished steps of the current epoch."""
        return len(self.meter.losses)

    def end_epoch(self, row: Metrics, eval_model: nn.Module) -> None:
        """Record the metrics of the epoch, and the weights of `eval_model` if they are the best so far.

        Args:
            row: the metrics, with `val/accuracy`.
            eval_model: the validated network, which has the averaged weights if there are any.

        Raises:
            DivergedError: if a metric or a weight is NaN or infinite, which the last step may have caused.
        """
        for name, value in row.items():
            if not math.isfinite(value):
                raise DivergedError(f"epoch {self.epoch}: {name} is {value} at learning rate {self.rate:g}")
        for name, tensor in eval_model.state_dict().items():
            if not tensor.isfinite().all():
                raise DivergedError(f"epoch {self.epoch}: {name} is not finite at learning rate {self.rate:g}")
        if not self.history or row["val/accuracy"] > self.history[self.best_epoch - 1]["val/accuracy"]:
            self.best_epoch, self.best_weights = self.epoch, copy.deepcopy(eval_model.state_dict())
        self.history.append(row)
        self.seconds += self.meter.seconds
        self.epoch += 1
        self.meter = EpochMeter()
        self.rate = self._schedule.value
        self.seed_draws()

    def wait(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seed_draws(self) -> None:
        """Seed the generators of the CPU and of the network's device, from which it draws, by (seed, epoch)."""
        seed = seed_of(seed_of(self._seed, self.epoch), NETWORK)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and containers of them, which `torch.load(weights_only=True)` can load.

        Raises:
            DivergedError: if the last loss is NaN or infinite, so that the state is useless.
        """
        self.meter.watch.settle()
        state = {name: part.state_dict() for name, part in self._parts.items()}
        draws = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            draws["cuda"] = torch.cuda.get_rng_state(self.device)
        results = {name: getattr(self, name) for name in RESULTS}
        return {**state, "meter": self.meter.state_dict(), "draws": draws, **results}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, which may be the final state of a training with fewer epochs."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        for name in RESULTS:
            setattr(self, name, state[name])
        self.meter = EpochMeter.from_state(state["meter"], self.device)
        self.seed_draws()
        if self.step == 0:
            # The epoch has not begun, so its learning rate comes from the schedule of this training.
            self.rate = self._schedule.value
        else:
            torch.set_rng_state(state["draws"]["cpu"])
            # A state that was saved on a CPU has no state of a GPU's generator.
            if self.device.type == "cuda" and "cuda" in state["draws"]:
                torch.cuda.set_rng_state(state["draws"]["cuda"], self.device)
