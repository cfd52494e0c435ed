"""How far a training has come: what the loop counts, and the state from which it can go on."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from leanresnet.errors import DivergedError
from leanresnet.training.augmentation import NETWORK, seed_of
from leanresnet.training.schedules import LearningRate
from leanresnet.training.validation import Metrics


class LossWatch:
    """Stops a training at a loss that is NaN or infinite.

    A GPU is not made to wait: its loss is looked at while it computes the next step.
    """

    def __init__(self) -> None:
        self._on_its_way: tuple[Tensor, torch.cuda.Event, int, float] | None = None

    def see(self, loss: Tensor, step: int, rate: float) -> None:
        """Raises DivergedError for this loss, or for the one before it that was still on its way."""
        self.settle()
        if not loss.is_cuda:
            _check(float(loss), step, rate)
            return
        value = torch.empty((), dtype=loss.dtype, pin_memory=True)
        value.copy_(loss, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._on_its_way = value, event, step, rate

    def settle(self) -> None:
        """Wait for the loss that is on its way, if one is."""
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
    """Losses and hits of an epoch's steps; they stay on the device until `metrics` waits for them.

    `seconds` is the time spent on them, and once the epoch has been validated, on batch norm's statistics too.
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
        """loss and accuracy, means over the augmented images as they were seen."""
        loss, hits = torch.stack(self.losses).mean(), torch.stack(self.hits).sum()
        return {"loss": float(loss), "accuracy": float(hits) / self.images}


class TrainState:
    """A training between two steps: all on which the next one depends, and what those before it gave.

    Attributes:
        epoch: the one under way, from 1.
        tally: of its steps so far; the images that they saw follow from their number.
        rate: the learning rate with which it began.
        history: a row of metrics for each epoch that ended.
        best_epoch, best_weights: of the highest validation accuracy; the first of several.
        seconds: of training in the epochs that ended, batch norm's statistics of averaged weights included.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LearningRate,
        average: AveragedModel | None,
        seed: int,
    ) -> None:
        # A schedule writes to the optimizer's groups, so it is loaded after the optimizer.
        self._parts: dict[str, Any] = {"net": net, "optimizer": optimizer, "schedule": schedule}
        if average is not None:
            self._parts["average"] = average
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
        """Steps of the epoch that were made."""
        return len(self.meter.losses)

    def end_epoch(self, row: Metrics, eval_model: nn.Module) -> None:
        """Keep the epoch's metrics, and the weights of `judged` if none before were better.

        Raises:
            DivergedError: one of them is NaN or infinite, which may have come with the epoch's last step.
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
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seed_draws(self) -> None:
        """What the network itself draws from here on is a function of (seed, epoch)."""
        torch.manual_seed(seed_of(seed_of(self._seed, self.epoch), NETWORK))

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and containers of them: `torch.load(weights_only=True)` takes them.

        Raises:
            DivergedError: the last loss is NaN or infinite; there is nothing behind it to keep.
        """
        self.meter.watch.settle()
        state = {name: part.state_dict() for name, part in self._parts.items()}
        counted = {
            "losses": torch.stack(self.meter.losses) if self.meter.losses else torch.empty(0),
            "hits": torch.stack(self.meter.hits) if self.meter.hits else torch.empty(0),
            "images": self.meter.images,
            "seconds": self.meter.seconds,
        }
        draws = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            draws["cuda"] = torch.cuda.get_rng_state(self.device)
        names = ("epoch", "rate", "history", "best_epoch", "best_weights", "seconds")
        return {**state, "tally": counted, "draws": draws, **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, which may be the last one of a training of fewer epochs."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        for name in ("epoch", "rate", "history", "best_epoch", "best_weights", "seconds"):
            setattr(self, name, state[name])
        counted = state["tally"]
        losses, hits = (list(counted[name].to(self.device).unbind()) for name in ("losses", "hits"))
        self.meter = EpochMeter(losses, hits, counted["images"], counted["seconds"])
        self.seed_draws()
        if self.step == 0:
            # The epoch begins here, under this training's own schedule.
            self.rate = self._schedule.value
        else:
            torch.set_rng_state(state["draws"]["cpu"])
            # A training that began on a CPU has none.
            if self.device.type == "cuda" and "cuda" in state["draws"]:
                torch.cuda.set_rng_state(state["draws"]["cuda"], self.device)
