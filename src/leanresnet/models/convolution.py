"""The convolutions of all networks, and what two of oneDNN's kernels need on a CPU."""

from math import ceil
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from leanresnet.compute.device import has_amx

# Packing pays for maps below this width, of this many channels (`python -m bench packing`).
WIDE, MANY_CHANNELS = 8, 128
# A packed map has at least so many pixels.
PACKED_PIXELS = 256


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, padded so that a stride of 1 keeps the size of the map; `kernel` is odd."""
    kind: type[nn.Conv2d] = nn.Conv2d
    if kernel == 1 and stride > 1 and inputs < 16:
        kind = _Strided1x1
    elif kernel > 1 and stride == 1 and min(inputs, outputs) >= MANY_CHANNELS and has_amx():
        kind = _SameSizeAMX
    return kind(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class _Strided1x1(nn.Conv2d):
    """A 1x1 convolution with a stride, computed as a convolution without stride on every stride-th pixel.

    If there are fewer input channels than a vector register holds, oneDNN's strided convolution writes past its
    workspace in the backward pass and corrupts the heap (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


class _SameSizeAMX(nn.Conv2d):
    """A convolution with a stride of 1. In bfloat16, small maps are packed for the gradient of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[3] < WIDE and _trains_in_bf16(x.device):
            return cast(Tensor, PackedGradient.apply(x.bfloat16(), self.weight.bfloat16()))
        return super().forward(x)


def _trains_in_bf16(device: torch.device) -> bool:
    return (
        device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


class PackedGradient(torch.autograd.Function):
    """The convolution of PyTorch, with the gradient of its weights computed from several images side by side.

    oneDNN fills up the rows of a map to the width of AMX's matrix instructions. With rows of 3 or 7 pixels, the
    gradient of the weights takes three to five times as long as the convolution itself (`python -m bench packing`).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        padding = weight.shape[-1] // 2
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = conv2d_input(x.shape, weight, gradient, padding=padding)
        if ctx.needs_input_grad[1]:
            count = ceil(PACKED_PIXELS / (x.shape[2] * (x.shape[3] + padding)))
            packed, packed_gradient = pack(x, count, padding), pack(gradient, count, padding)
            for_weight = conv2d_weight(packed, weight.shape, packed_gradient, padding=padding)
        return for_x, for_weight


def pack(maps: Tensor, count: int, gap: int) -> Tensor:
    """Return `maps` with `count` images side by side in each, and columns of zeros after each image.

    A convolution whose padding is at most `gap` does not mix the images. Where the number of images is no multiple of
    `count`, the last map ends in zeros.

    Shapes: (B, C, H, W) -> (ceil(B / count), C, H, count * (W + gap)), in channels_last memory.
    """
    images, channels, height, width = maps.shape
    filled = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 0, gap, 0, 0, 0, -images % count))
    rows = filled.view(-1, count, height, width + gap, channels).transpose(1, 2)
    return rows.reshape(-1, height, count * (width + gap), channels).permute(0, 3, 1, 2)
