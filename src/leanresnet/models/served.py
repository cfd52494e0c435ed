"""A network for serving, which checks its input."""

import torch
from torch import Tensor, nn


class Served(nn.Module):
    """A network that refuses input which is not pixels.

    The input has the type float32, because a server would round or wrap other numbers to fit uint8, and the network
    would return confident predictions for nonsense. Numbers in JSON have no integer type, so only floats pass on to the
    network what a client sent. The check is part of an exported network, too.

    Args:
        net: a `ResNet` or an `Ensemble`.

    Shapes: images (B, 3, 32, 32) float32, each a whole number from 0 to 255 -> logits (B, classes).

    Raises:
        RuntimeError: if an input is not a whole number from 0 to 255.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images >= 0) & (images <= 255) & (images == images.round())
        # The check runs on the CPU, because a failed assertion on a GPU makes the GPU unusable for the process.
        torch._assert_async(
            pixels.all().cpu(), "images: a number is not a pixel, expected: whole numbers from 0 to 255"
        )
        logits: Tensor = self.net(images)
        return logits
