"""The paper's family of ResNets for 32x32 images, and its relatives for short trainings.

Basic blocks (conv-BN-ReLU-conv-BN + shortcut, ReLU) of He et al., "Deep Residual Learning
for Image Recognition" (arXiv:1512.03385), in N layers of B_i blocks with C_i channels,
F_i x F_i convolutions, K_i x K_i convolutions on the shortcut, and a P x P pool at the end.
The paper's networks halve a map by a stride and pool by average. Those for short trainings
open each layer with a convolution and a 2x2 max pool, before blocks that keep its shape
(Page, "How to Train Your ResNet", 2018), behind a whitening stem.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.config.schema import CLASSES, WHITENING_FILTERS, Model
from leanresnet.models.blocks import BLOCKS, Activation, ConvBN, ConvPool, convolution

ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu}


class Whitening(nn.Conv2d):
    """A first convolution whose 2x2 filters are computed, not trained: its outputs are uncorrelated.

    Page, "How to Train Your ResNet 8: Bag of Tricks" (2019), of 3x3 patches; 2x2, and each
    filter also with the other sign, as in Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single
    GPU" (arXiv:2404.00498), section 3.2.
    """

    def __init__(self) -> None:
        super().__init__(3, WHITENING_FILTERS, 2)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Compute the filters from normalised images (B, 3, H, W)."""
        # In parts: unfolded, 5,000 images of CIFAR-10 take half a gigabyte.
        count, total, squares = 0, torch.zeros(12).double(), torch.zeros(12, 12).double()
        for part in images.split(200):
            patches = F.unfold(part.double(), 2).transpose(0, 1).flatten(1)
            count += patches.shape[1]
            total += patches.sum(1)
            squares += patches @ patches.T
        mean = total / count
        variances, directions = torch.linalg.eigh(squares / count - mean.outer(mean))
        filters = directions.T / (variances[:, None] + 5e-4).sqrt()
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))
        assert self.bias is not None
        self.bias.zero_()


class ResNet(nn.Module):
    """Raw pixels in, class scores out.

    Normalization is part of the network (buffers, not parameters), so weights that are
    loaded, exported or served cannot be fed with another data set's constants.

    Args:
        model: sizes, already validated.
        mean, std: of each channel, for images in [0, 1].
        stochastic_depth: probability that training drops the last block's branch; the first
            of L blocks has an L-th of it, and so on.

    Shapes: images (B, 3, 32, 32) in 0..255, uint8 or float -> logits (B, 10). Where the pool
        spans the whole last map, images of other sizes are taken too.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: Model, mean: Sequence[float], std: Sequence[float], stochastic_depth: float = 0.0
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.model = model
        self._activation = ACTIVATIONS[model.activation]
        self._drop = stochastic_depth / max(1, sum(model.blocks))
        width = WHITENING_FILTERS if model.stem == "whitening" else model.channels[0]
        self.stem = self._stem(width)
        layers = []
        for n in range(model.layers):
            layers.append(self._layer(n, width))
            width = model.channels[n]
        self.layers = nn.Sequential(*layers)
        # The sum that leaves the last of such blocks was neither normalised nor activated.
        self.norm = nn.BatchNorm2d(width) if model.block == "preactivation" else None
        self.classifier = nn.Linear(width * (model.last_map // model.pool) ** 2, CLASSES)

    def _stem(self, width: int) -> nn.Module:
        if self.model.stem == "whitening":
            return Whitening()
        return convolution(3, width, 3) if self.model.block == "preactivation" else ConvBN(3, width, 3)

    def _layer(self, n: int, width: int) -> nn.Sequential:
        model, channels = self.model, self.model.channels[n]
        pooled = model.downsample == "pool"
        parts: list[nn.Module] = []
        if pooled:
            parts.append(ConvPool(width, channels, model.kernels[n], self._activation))
            width = channels
        for b in range(model.blocks[n]):
            stride = 2 if not pooled and n > 0 and b == 0 else 1
            parts.append(
                BLOCKS[model.block](
                    width,
                    channels,
                    model.kernels[n],
                    model.skip_kernels[n],
                    stride,
                    self._activation,
                    ratio=model.squeeze_excite,
                    drop=self._drop * (sum(model.blocks[:n]) + b + 1),
                )
            )
            width = channels
        return nn.Sequential(*parts)

    def normalize(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images)[1]

    def forward_features(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each layer makes of the images, (B, C_i, side, side), and the logits."""
        x = self.stem(self.normalize(images))
        x = x if self.norm else self._activation(x)
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        x = self._activation(self.norm(x)) if self.norm else x
        logits: Tensor = self.classifier(self._pool(x).flatten(1))
        return found, logits

    def _pool(self, x: Tensor) -> Tensor:
        whole = self.model.pool == self.model.last_map
        pool = F.avg_pool2d if self.model.pool_kind == "average" else F.max_pool2d
        # Not amax, whose gradient divides by the number of maxima it finds again: compiled, in bfloat16, that is none.
        return pool(x, tuple(x.shape[2:]) if whole else self.model.pool)


def build_model(
    model: Model,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    bn_momentum: float = 0.1,
    initialization: str = "kaiming",
    images: Tensor | None = None,
    stochastic_depth: float = 0.0,
) -> ResNet:
    """A network initialised from `seed` alone; the caller's random state is left as it was.

    Args:
        initialization: kaiming, normal by fan out (He et al., arXiv:1502.01852); dirac: beside it
            the first filters of each convolution in a layer hand their inputs on
            (Zagoruyko and Komodakis, arXiv:1706.00388).
        images: training images (B, 3, H, W), raw, of which a whitening stem is made.
        stochastic_depth: see `ResNet`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ResNet(model, mean, std, stochastic_depth)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    if initialization == "dirac":
        for module in net.layers.modules():
            # Those of squeeze-and-excitation have a bias, and map channels to other things than channels.
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.dirac_(module.weight[: module.in_channels].detach())
    if isinstance(net.stem, Whitening) and images is not None:
        net.stem.fit(net.normalize(images))
    return net.to(memory_format=torch.channels_last)
