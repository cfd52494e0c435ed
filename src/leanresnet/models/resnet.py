"""The paper's family of ResNets for 32x32 images.

Basic blocks (conv-BN-ReLU-conv-BN + shortcut, ReLU) of He et al., "Deep Residual Learning
for Image Recognition" (arXiv:1512.03385), in N layers of B_i blocks with C_i channels,
F_i x F_i convolutions, K_i x K_i convolutions on the shortcut, and a P x P average pool.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.config import CLASSES, Model


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, skip_kernel: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, outputs, kernel, stride)
        self.conv2 = conv_bn(outputs, outputs, kernel)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = conv_bn(inputs, outputs, skip_kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """Raw pixels in, class scores out.

    Normalization is part of the network (buffers, not parameters), so weights that are
    loaded, exported or served cannot be fed with another data set's constants.

    Args:
        model: sizes, already validated.
        mean, std: of each channel, for images in [0, 1].

    Shapes: images (B, 3, 32, 32) in 0..255, uint8 or float -> logits (B, 10).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        width = model.channels[0]
        self.stem = conv_bn(3, width, 3)
        layers = []
        for n in range(model.layers):
            blocks = []
            for b in range(model.blocks[n]):
                stride = 2 if n > 0 and b == 0 else 1
                blocks.append(BasicBlock(width, model.channels[n], model.kernels[n], model.skip_kernels[n], stride))
                width = model.channels[n]
            layers.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d(model.pool)
        self.classifier = nn.Linear(width * (model.last_map // model.pool) ** 2, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = (images.float() / 255 - self.mean) / self.std
        x = self.layers(F.relu(self.stem(x)))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def build_model(
    model: Model, mean: Sequence[float], std: Sequence[float], seed: int, bn_momentum: float = 0.1
) -> ResNet:
    """A network initialised from `seed` alone; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ResNet(model, mean, std)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    return net.to(memory_format=torch.channels_last)
