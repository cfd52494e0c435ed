"""The gradient of the weights from several images side by side, against the plain one, on this CPU."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.report import alternate, median, record, seconds
from leanresnet.models.convolution import PackedGradient

SIZES, CHANNELS, REPEATS = (3, 4, 7, 8), (64, 128, 256), 9
CPU = torch.device("cpu")


def packing(batch: int) -> None:
    """Time the forward and the backward pass of a 3x3 convolution in bfloat16, over the size of its maps."""
    for channels in CHANNELS:
        for size in SIZES:
            found = alternate(
                {name: _pass(function, batch, channels, size) for name, function in KINDS.items()}, REPEATS
            )
            plain, packed = median(found["plain"]), median(found["packed"])
            context = {"batch": batch, "threads": torch.get_num_threads(), "repetitions": REPEATS}
            name = f"packing/{channels}_channels_{size}_pixels"
            record(name, packed / plain, "x", plain=f"{plain:.4f} s", packed=f"{packed:.4f} s", **context)


def _plain(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def _packed(x: Tensor, weight: Tensor) -> Tensor:
    output: Tensor = PackedGradient.apply(x, weight)
    return output


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"plain": _plain, "packed": _packed}


def _pass(function: Callable[[Tensor, Tensor], Tensor], batch: int, channels: int, size: int) -> Callable[[], float]:
    shapes = (batch, channels, size, size), (channels, channels, 3, 3)
    x, weight = (
        torch.randn(shape).bfloat16().to(memory_format=torch.channels_last).requires_grad_() for shape in shapes
    )
    gradient = torch.randn_like(x)

    def action() -> object:
        return torch.autograd.grad(function(x, weight), (x, weight), gradient)

    action()
    return lambda: seconds(action, CPU)
