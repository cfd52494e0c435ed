"""One training in several processes, each with its share of every batch: torchrun's, by DistributedDataParallel.

All processes draw the same batches, and each computes its share of them; gradients, losses and hits
are brought together after it. So the network, the optimizer and the history are the same
everywhere, one process, the first, reports and saves, and what is saved goes on in any number of them.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from signal import Signals
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from leanresnet.errors import LostProcessError


class DistributedContext:
    """The processes of a training, of which this one is number `rank` of `size`."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that reports and saves."""
        return self.rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """This process's part of a batch (B, ...): (B / size, ...), or one more where that has a remainder."""
        return batch.tensor_split(self.size)[self.rank]

    def wrap_objective(
        self, net: nn.Module, objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The objective of `net` on a share; a backward pass through it leaves the whole batch's mean gradient."""
        return DistributedDataParallel(_Step(net, objective)) if self.size > 1 else objective

    def reduce_step(self, loss: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the shares' losses, and the sum of their hits; without gradient."""
        if self.size == 1:
            return loss.detach(), hits
        both = torch.stack([loss.detach().float() / self.size, hits.float()])
        dist.all_reduce(both)
        return both[0], both[1]

    def sum_over_processes(self, sums: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(sums)
        return sums

    def broadcast_buffers(self, net: nn.Module) -> None:
        """Give every process the first one's buffers, as DistributedDataParallel does before each step."""
        if self.size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)

    def any_rank_signal(self, signal: Signals | None) -> Signals | None:
        """The signal that any of the processes got, so that all stop after the same step."""
        if self.size == 1:
            return signal
        number = torch.tensor(0 if signal is None else int(signal))
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return Signals(int(number)) if number else None

    def broadcast_state(self, state: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The first process's `state`; tensors, numbers, text and containers of them."""
        if self.size == 1:
            return state
        buffer = io.BytesIO()
        torch.save(state, buffer)
        length = torch.tensor(len(buffer.getbuffer()))
        dist.broadcast(length, 0)
        content = torch.empty(int(length), dtype=torch.uint8)
        if self.is_main_process:
            content.copy_(torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8))
        dist.broadcast(content, 0)
        if self.is_main_process:
            return state
        received: Mapping[str, Any] | None
        received = torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)
        return received


SINGLE_PROCESS = DistributedContext()


class _Step(nn.Module):
    """A network's objective as a module, since DistributedDataParallel sees to what a module's `forward` calls."""

    def __init__(self, net: nn.Module, objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.net = net
        self._objective = objective

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._objective(images, labels)


def is_launched() -> bool:
    """Whether torchrun started this process, as one of several or alone."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def distributed_context() -> Iterator[DistributedContext]:
    """The processes that torchrun started together with this one; this one alone where it was started without.

    Raises:
        LostProcessError: inside, another process ended before its time.
    """
    if not is_launched():
        yield SINGLE_PROCESS
        return
    # Signals and states are the CPU's, also where gradients are a GPU's.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "cpu:gloo")
    try:
        yield DistributedContext(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise LostProcessError(
            "a process of this training ended before its time; the same command goes on from the last snapshot"
        ) from error
    finally:
        dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    # gloo says it in words alone.
    return isinstance(error, dist.DistError) or "gloo" in str(error)


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's gradient is the sum of the gradients of all that saw it."""

    @staticmethod
    def forward(context: Any, share: Tensor) -> Tensor:
        total = share.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(context, gradients[0])


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the shares of all processes, for a CPU, which torch's own one refuses.

    Means and variances of equal shares are put together in float32: the variance of all is the
    mean of theirs plus the variance of their means. No difference of large squares is taken, so a
    mean of 10,000 standard deviations costs no more than in one process.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            eval_model: Tensor = super().forward(x)
            return eval_model
        size = dist.get_world_size()
        own_variance, own_mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        mean: Tensor = _Sum.apply(own_mean) / size
        variance: Tensor = _Sum.apply(own_variance + (own_mean - mean).square()) / size
        self._count(mean.detach(), variance.detach(), size * x.numel() // x.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt()
        centred = x - mean[:, None, None]
        normalised = torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None])
        return normalised.to(x.dtype)

    @torch.no_grad()
    def _count(self, mean: Tensor, variance: Tensor, values: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * values / (values - 1), momentum)


def convert_sync_batch_norm(net: nn.Module) -> None:
    """Each batch norm within `net` over the whole batch; its parameters and buffers stay the same tensors."""
    if next(net.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(net)
        return
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm
