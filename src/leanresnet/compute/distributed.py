"""One training in several processes that torchrun started, by DistributedDataParallel.

All processes draw the same batches, and each computes its shard of them. Then gradients, losses and numbers of correct
predictions are reduced over the processes. So the network, the optimizer and the history are the same in all of them.
Only the first process reports and saves, and a saved state can be resumed in any number of processes.
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

from leanresnet.errors import LostProcessError, cause

ENDED_EARLY = "a process of this training ended early"
RESUMES = "the same command resumes from the last snapshot"


class DistributedContext:
    """The processes of a training.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that reports and saves."""
        return self.rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """Return this process's part of a batch.

        Shapes: (B, ...) -> (B // size, ...); the first B % size processes get one more.
        """
        return batch.tensor_split(self.size)[self.rank]

    def wrap_objective(
        self, net: nn.Module, objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Wrap `objective(images, labels)` of `net`, so that its backward pass averages gradients over processes."""
        return DistributedDataParallel(_ObjectiveModule(net, objective)) if self.size > 1 else objective

    def reduce_step(self, loss: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean over processes of their losses and the sum of their correct predictions, both detached."""
        if self.size == 1:
            return loss.detach(), hits
        both = torch.stack([loss.detach().float() / self.size, hits.float()])
        dist.all_reduce(both)
        return both[0], both[1]

    def sum_over_processes(self, sums: Tensor) -> Tensor:
        """Return `sums`, summed in place over all processes."""
        if self.size > 1:
            dist.all_reduce(sums)
        return sums

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return `tensor`, filled in place with the values of the first process in all others."""
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def announce(self, waits: bool) -> None:
        """Tell the other processes, which `follow`, whether the first one still waits for something.

        They would wait for 30 minutes at most, and each announcement gives them that time again.
        """
        self.broadcast(torch.tensor(int(waits)))

    def follow(self) -> None:
        """Wait until the first process announces that it no longer waits; the other processes call this."""
        while self.broadcast(torch.tensor(1)):
            pass

    def broadcast_buffers(self, net: nn.Module) -> None:
        """Copy the buffers of the first process to all others, as DistributedDataParallel does before each step."""
        for buffer in net.buffers():
            self.broadcast(buffer)

    def any_rank_signal(self, signal: Signals | None) -> Signals | None:
        """Return the signal that any of the processes received, or None, so that all stop after the same step."""
        if self.size == 1:
            return signal
        number = torch.tensor(0 if signal is None else int(signal))
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return Signals(int(number)) if number else None

    def broadcast_state(self, state: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return the `state` of the first process in all processes.

        Args:
            state: tensors, numbers, text and containers of them; ignored in the other processes.
        """
        if self.size == 1:
            return state
        buffer = io.BytesIO()
        torch.save(state, buffer)
        saved = bytearray(buffer.getvalue())
        length = torch.tensor(len(saved))
        dist.broadcast(length, 0)
        if self.is_main_process:
            content = torch.frombuffer(saved, dtype=torch.uint8)
        else:
            content = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, 0)
        if self.is_main_process:
            return state
        received: Mapping[str, Any] | None
        received = torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)
        return received


SINGLE_PROCESS = DistributedContext()


class _ObjectiveModule(nn.Module):
    """A network's objective as a module, because DistributedDataParallel wraps the `forward` of a module."""

    def __init__(self, net: nn.Module, objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.net = net
        self._objective = objective

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._objective(images, labels)


def is_launched() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def distributed_context() -> Iterator[DistributedContext]:
    """Connect the processes that torchrun started, and disconnect them on exit.

    Without torchrun, the context is `SINGLE_PROCESS`.

    Raises:
        LostProcessError: inside the block, if another process ended early.
    """
    if not is_launched():
        yield SINGLE_PROCESS
        return
    # Signals and states are exchanged as CPU tensors, even if gradients are on a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "cpu:gloo")
    try:
        yield DistributedContext(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        # NCCL says in the same way that it cannot use a GPU.
        reason = f" ({cause(error)})" if isinstance(error, dist.DistBackendError) else ""
        raise LostProcessError(f"{ENDED_EARLY}{reason}; {RESUMES}") from error
    finally:
        dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    # gloo raises a plain RuntimeError, which only its message identifies.
    return isinstance(error, dist.DistError) or "gloo" in str(error)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient in each process is the sum of the gradients in all processes."""

    @staticmethod
    def forward(context: Any, share: Tensor) -> Tensor:
        total = share.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(context, gradients[0])


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the shards of all processes on a CPU, which `torch.nn.SyncBatchNorm` does not support.

    The shards have equal sizes. Their means and variances are combined in float32: the variance of the batch is the
    mean of the shards' variances plus the variance of their means. This takes no difference of large squares, so a
    mean of 10,000 standard deviations loses no more precision than in one process.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            output: Tensor = super().forward(x)
            return output
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
    """Make each batch norm within `net` compute its statistics over all processes.

    Parameters and buffers stay the same tensors.
    """
    if next(net.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(net)
        return
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm
