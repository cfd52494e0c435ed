"""The building blocks of a ResNet's layers."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext
from leanresnet.models.convolution import convolution

Activation = Callable[[Tensor], Tensor]


class ConvBN(nn.Sequential):
    """A convolution and a batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(convolution(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs))


class ConvPool(ConvBN):
    """conv, 2x2 max pool, BN, activation: the start of each layer in a network that halves its maps by pooling."""

    def __init__(self, inputs: int, outputs: int, kernel: int, activation: Activation) -> None:
        super().__init__(inputs, outputs, kernel)
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self._activation(self[1](F.max_pool2d(self[0](x), 2)))


def squeeze_excite(channels: int, ratio: int) -> nn.Module:
    """Return a squeeze-and-excitation module, Hu et al., "Squeeze-and-Excitation Networks" (arXiv:1709.01507).

    Args:
        channels: number of channels, which the module scales by factors that it computes from all their means.
        ratio: reduction ratio of its hidden layer; 0 returns an identity.
    """
    if not ratio:
        return nn.Identity()
    # torchvision imports its models and torch's compiler, more than a second in each process, and most networks need it
    # for nothing else.
    from torchvision.ops import SqueezeExcitation

    module: nn.Module = SqueezeExcitation(channels, channels // ratio)
    return module


class StochasticDepth(nn.Module):
    """Replaces the branch of an image by zeros with a probability in training, and scales up the others.

    It computes what torchvision's module with `mode="row"` does. In a training by several processes, each draws for the
    whole batch and uses its own shard, so that they drop what one process would drop. The shards have equal sizes.

    Source: Huang et al., "Deep Networks with Stochastic Depth" (arXiv:1603.09382).

    Args:
        drop: the probability.
    """

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.world = SINGLE_PROCESS

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty(self.world.size * len(x), 1, 1, 1).bernoulli_(1 - self.drop).div_(1 - self.drop)
        return x * self.world.shard(kept)


def draw_for(net: nn.Module, world: DistributedContext) -> None:
    """Let the stochastic depth within `net` draw for batches that the processes of `world` share."""
    for module in net.modules():
        if isinstance(module, StochasticDepth):
            module.world = world


class BasicBlock(nn.Module):
    """conv-BN-activation-conv-BN + shortcut, activation (He et al., arXiv:1512.03385).

    Args:
        inputs, outputs: numbers of channels.
        kernel: size of the convolutions in pixels.
        skip_kernel: size of the convolution on the shortcut, which is there only where the shape changes.
        stride: stride of the first convolution and of the shortcut.
        activation: the activation function.
        ratio: see `squeeze_excite`, which is at the end of the branch.
        drop: probability, in training, that an image uses the shortcut alone, see `StochasticDepth`.
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
        self.drop = StochasticDepth(drop) if drop else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvBN(inputs, outputs, skip_kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(self._activation(self.conv1(x)))
        return self._activation(self.drop(self.squeeze(branch)) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """BN-activation-conv-BN-activation-conv + shortcut (He et al., "Identity Mappings", arXiv:1603.05027).

    Where the shape changes, the shortcut is a convolution of the first activation's output, without batch norm. The
    arguments are those of `BasicBlock`.
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
        self.drop = StochasticDepth(drop) if drop else nn.Identity()
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = convolution(inputs, outputs, skip_kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self._activation(self.norm1(x))
        branch = self.conv2(self._activation(self.norm2(self.conv1(active))))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        output: Tensor = shortcut + self.drop(self.squeeze(branch))
        return output


BLOCKS: dict[str, type[BasicBlock] | type[PreActivationBlock]] = {
    "basic": BasicBlock,
    "preactivation": PreActivationBlock,
}


def filters_before_norm(net: nn.Module) -> set[Tensor]:
    """Return the weights of the convolutions whose outputs are used only by a batch norm.

    The output of the network does not depend on the norms of these weights. In a pre-activation network, only the first
    convolution of each block is such a one; the outputs of the others are added up before a batch norm.
    """
    found: list[nn.Module] = []
    for module in net.modules():
        if isinstance(module, ConvBN):
            found.append(module[0])
        elif isinstance(module, PreActivationBlock):
            found.append(module.conv1)
    return {each.weight for each in found if isinstance(each, nn.Conv2d)}
