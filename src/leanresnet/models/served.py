"""A network behind a door through which any numbers come."""

import torch
from torch import Tensor, nn


class Served(nn.Module):
    """Refuses what is no pixel, where a server would round or wrap it and give a confident answer to nonsense.

    JSON has one type of number, so a server hands on what a client sent as floats alone without loss.

    Args:
        net: a `ResNet` or an `Ensemble`.

    Shapes: images (B, 3, 32, 32) float32, each a whole number from 0 to 255 -> logits (B, 10).

    Raises:
        RuntimeError: there are other numbers among them. It is kept in an export, too.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images >= 0) & (images <= 255) & (images == images.round())
        # On a GPU, a failed assertion would end all that the process does there.
        torch._assert_async(pixels.all().cpu(), "images: a number is no pixel, expected: whole numbers from 0 to 255")
        logits: Tensor = self.net(images)
        return logits
