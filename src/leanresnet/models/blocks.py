"""What the layers of a ResNet are made of."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation, StochasticDepth

Activation = Callable[[Tensor], Tensor]


class _Strided1x1(nn.Conv2d):
    """A 1x1 convolution with a stride, as a dense one on every stride-th pixel.

    oneDNN's own, for fewer inputs than a vector holds, writes past its workspace in the
    backward pass and corrupts the heap (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    kind = _Strided1x1 if kernel == 1 and stride > 1 and inputs < 16 else nn.Conv2d
    return kind(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class ConvBN(nn.Sequential):
    """conv, BN."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(convolution(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs))


class ConvPool(ConvBN):
    """conv, 2x2 max pool, BN, activation: opens a layer of a network that halves its maps by pooling."""

    def __init__(self, inputs: int, outputs: int, kernel: int, activation: Activation) -> None:
        super().__init__(inputs, outputs, kernel)
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self._activation(self[1](F.max_pool2d(self[0](x), 2)))


def squeeze_excite(channels: int, ratio: int) -> nn.Module:
    """Scales each channel by what all of them say: Hu et al., arXiv:1709.01507; a ratio of 0 is none."""
    return SqueezeExcitation(channels, channels // ratio) if ratio else nn.Identity()


class BasicBlock(nn.Module):
    """conv-BN-activation-conv-BN + shortcut, activation (He et al., arXiv:1512.03385).

    Args:
        ratio: see `squeeze_excite`; it stands at the end of the branch.
        drop: probability, in training, that an image goes by the shortcut alone (Huang et
            al., "Deep Networks with Stochastic Depth", arXiv:1603.09382).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        skip_kernel: int,
        stride: int,
        activation: Activation = F.relu,
        ratio: int = 0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self._activation = activation
        self.conv1 = ConvBN(inputs, outputs, kernel, stride)
        self.conv2 = ConvBN(outputs, outputs, kernel)
        self.squeeze = squeeze_excite(outputs, ratio)
        self.drop = StochasticDepth(drop, "row")
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvBN(inputs, outputs, skip_kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(self._activation(self.conv1(x)))
        return self._activation(self.drop(self.squeeze(branch)) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """BN-activation-conv-BN-activation-conv + shortcut (He et al., "Identity Mappings", arXiv:1603.05027).

    Where the shape changes, the shortcut is a convolution of what the first activation made,
    without batch norm. The arguments are those of `BasicBlock`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        skip_kernel: int,
        stride: int,
        activation: Activation = F.relu,
        ratio: int = 0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self._activation = activation
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = convolution(inputs, outputs, kernel, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, kernel)
        self.squeeze = squeeze_excite(outputs, ratio)
        self.drop = StochasticDepth(drop, "row")
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = convolution(inputs, outputs, skip_kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self._activation(self.norm1(x))
        branch = self.conv2(self._activation(self.norm2(self.conv1(active))))
        beside = x if self.shortcut is None else self.shortcut(active)
        added: Tensor = beside + self.drop(self.squeeze(branch))
        return added


BLOCKS: dict[str, type[BasicBlock] | type[PreActivationBlock]] = {
    "basic": BasicBlock,
    "preactivation": PreActivationBlock,
}


def filters_before_norm(net: nn.Module) -> set[Tensor]:
    """The weights of the convolutions whose outputs nothing but a batch norm sees.

    The network is blind to the norm of each of them. In a pre-activation network these are only the first of
    each block; what the others give is added up before a batch norm sees the sum.
    """
    found: list[nn.Module] = []
    for module in net.modules():
        if isinstance(module, ConvBN):
            found.append(module[0])
        elif isinstance(module, PreActivationBlock):
            found.append(module.conv1)
    return {each.weight for each in found if isinstance(each, nn.Conv2d)}
