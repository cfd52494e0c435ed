"""Data selection: a small proxy network decides from which images of a batch the network learns."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext
from leanresnet.config.schema import Selection
from leanresnet.training.schedules import LearningRate
from leanresnet.training.state import EpochMeter
from leanresnet.training.validation import Metrics, count_correct

# (images, labels) -> (mean loss, number of correct predictions, loss of each image (B,) without gradient)
ProxyObjective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class ProxySelection:
    """A proxy network that learns from whole batches, and the choice of the images on which its loss is greatest.

    Sources: Coleman et al., "Selection via Proxy" (arXiv:1906.11829), for a small network that chooses for a large one;
    Jordan, airbench96 (https://github.com/KellerJordan/cifar10-airbench), for the choice within each batch by the
    greatest loss, before the step in which the proxy learns from it.

    The choice is a function of the seed and the number of the step, because nothing of the large network enters it. In
    several processes, each trains the proxy on the whole batch, and the choice of the first one counts.

    Args:
        settings: the section of the recipe.
        net: the proxy. Its batch norms lose their running statistics, because it is never evaluated.
        objective: see `proxy_objective`; compiled or not.
        optimizer, schedule: the proxy's own.
        autocast: a reusable context, entered around each forward pass.
        max_grad_norm: largest L2 norm of the proxy's gradient, or None for no clipping.
        world: the processes of the training.
    """

    def __init__(
        self,
        settings: Selection,
        net: nn.Module,
        objective: ProxyObjective,
        optimizer: torch.optim.Optimizer,
        schedule: LearningRate,
        autocast: AbstractContextManager[object],
        max_grad_norm: float | None = None,
        world: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        self.net = net.train()
        self._settings = settings
        self._objective = objective
        self._optimizer = optimizer
        self._schedule = schedule
        self._autocast = autocast
        self._max_grad_norm = max_grad_norm
        self._world = world
        self._measured: tuple[Tensor, Tensor, int] | None = None
        self._meter = EpochMeter()

    def select(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images of a batch, in their order, from which the network learns, and their labels.

        The state does not change before `step`, because the compilation of the network's step saves it in between.

        Shapes: images (B, 3, H, W) -> (K, 3, H, W); labels (B,) or (B, classes) -> (K,) or (K, classes), where K is
            `Selection.count(B)`.
        """
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast:
            loss, right, each = self._objective(images, labels)
        loss.backward()
        self._measured = loss.detach(), right, len(labels)
        return self._greatest(each, images, labels)

    def choose(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `select` would, but let the proxy learn nothing; the caller enters autocast."""
        # Without gradients, the function would be compiled once more.
        with torch.enable_grad():
            each = self._objective(images, labels)[2]
        return self._greatest(each, images, labels)

    def _greatest(self, each: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # A stable sort, because topk may choose otherwise among equal losses the next time.
        greatest = each.argsort(descending=True, stable=True)[: self._settings.count(len(labels))]
        chosen = self._world.broadcast(greatest.sort().values)
        return images[chosen], labels[chosen]

    def step(self) -> None:
        """Let the proxy learn from the batch of the last `select`."""
        assert self._measured is not None
        if self._max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self._max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        self._meter.add(*self._measured)
        self._measured = None

    def metrics(self) -> Metrics:
        """Return the proxy's loss and accuracy over the whole batches of the epoch so far."""
        return {f"proxy_{name}": value for name, value in self._meter.metrics().items()}

    def end_epoch(self, val_loss: float) -> None:
        """Begin a new epoch.

        Args:
            val_loss: the network's loss on validation, which may reduce the learning rate of both.
        """
        self._schedule.end_epoch(val_loss)
        self._meter = EpochMeter()

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "meter": self._meter.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._meter = EpochMeter.from_state(state["meter"], next(self.net.parameters()).device)


def proxy_objective(net: nn.Module, label_smoothing: float) -> ProxyObjective:
    """Join the proxy and its cross entropy to one function, which `torch.compile` compiles to one graph."""

    def objective(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = net(images)
        each = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=label_smoothing)
        return each.mean(), count_correct(logits, labels), each.detach()

    return objective
