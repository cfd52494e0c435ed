"""An exponential moving average of a network's weights, and batch norm's statistics for it.

`torch.optim.swa_utils` has both. On a GPU, its average waits for a copy in each step and copies all buffers, and its
`update_bn` waits for each batch norm on each batch. The results here have the same bytes.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanresnet.compute.distributed import SINGLE_PROCESS
from leanresnet.models.blocks import draw_for


class MovingAverage(nn.Module):
    """The moving average of the parameters of a network; the first update copies them.

    The buffers are those of the start. Call `compute_batch_norm` before the averaged network is used.

    Args:
        net: the network, which is copied.
        decay: share of the average that remains in each update.

    Attributes:
        module: the averaged network.
    """

    updates: Tensor

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(net)
        # Each process computes batch norm's statistics on whole batches.
        draw_for(self.module, SINGLE_PROCESS)
        self._decay = decay
        # It stays on the CPU, so that reading it waits for nothing.
        self.register_buffer("updates", torch.tensor(0))

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        own: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(net.parameters())
        if self.updates == 0:
            torch._foreach_copy_(own, current)
        else:
            torch._foreach_lerp_(own, current, 1 - self._decay)
        self.updates += 1


@torch.no_grad()
def compute_batch_norm(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set the running statistics of each batch norm to their means over `batches`, pairs of images and labels."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = net.training
    net.train()
    for norm in norms:
        norm.reset_running_stats()
    for number, (images, _) in enumerate(batches, 1):
        for norm in norms:
            norm.momentum = 1 / number
        net(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.train(training)
