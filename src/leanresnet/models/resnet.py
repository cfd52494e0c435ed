"""The study's family of ResNets for 32x32 images, and related networks for short trainings.

The study's networks have the basic blocks (conv-BN-ReLU-conv-BN + shortcut, ReLU) of He et al., "Deep Residual Learning
for Image Recognition" (arXiv:1512.03385), in N layers of B_i blocks with C_i channels, F_i x F_i convolutions,
K_i x K_i convolutions on the shortcut, and a P x P pool at the end. A layer of the study is what the literature calls a
stage. Their maps are halved by a stride, and the last pool takes the average. The networks for short trainings have a
whitening stem, and each of their layers starts with a convolution and a 2x2 max pool, followed by blocks that keep the
shape (Page, "How to Train Your ResNet", 2018). With one block each, they are the groups of three convolutions of
Jordan's airbench96 (https://github.com/KellerJordan/cifar10-airbench).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.config.schema import CLASSES, WHITENING_FILTERS, Model
from leanresnet.models.blocks import BLOCKS, Activation, ConvBN, ConvPool
from leanresnet.models.convolution import convolution

ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu}


class Whitening(nn.Conv2d):
    """A first convolution whose 2x2 filters are not trained but computed such that they whiten the patches of images.

    The method is Page's, "How to Train Your ResNet 8: Bag of Tricks" (2019), who used 3x3 patches. The 2x2 patches, and
    the second copy of each filter with the opposite sign, are as in Jordan, "94% on CIFAR-10 in 3.29 Seconds on a
    Single GPU" (arXiv:2404.00498), section 3.2.
    """

    def __init__(self) -> None:
        super().__init__(3, WHITENING_FILTERS, 2)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Compute the filters from normalised images (B, 3, H, W), whose sums their device computes."""
        count = 0
        total, squares = (torch.zeros(size, dtype=torch.float64, device=images.device) for size in (12, (12, 12)))
        # Process the images in parts, because 5,000 unfolded images of CIFAR-10 take half a gigabyte.
        for part in images.split(200):
            patches = F.unfold(part.double(), 2).transpose(0, 1).flatten(1)
            count += patches.shape[1]
            total += patches.sum(1)
            squares += patches @ patches.T
        # On the CPU, so that the filters have the same signs and order whatever the device.
        mean, squares = total.cpu() / count, squares.cpu()
        variances, directions = torch.linalg.eigh(squares / count - mean.outer(mean))
        filters = directions.T / (variances[:, None] + 5e-4).sqrt()
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))
        assert self.bias is not None
        self.bias.zero_()


class ResNet(nn.Module):
    """A ResNet from raw pixels to logits.

    Normalization is part of the network, in buffers, so that a network that is loaded, exported or served is never used
    with the constants of another data set.

    Args:
        model: sizes, already validated.
        mean, std: of each channel, for images in [0, 1].
        stochastic_depth: probability p with which the branch of the last block is dropped in training. Block i of L
            has the probability p * i / L.
        classes: number of classes.

    Shapes: images (B, 3, 32, 32) in 0..255, uint8 or float -> logits (B, classes). If the last pool covers the whole
        map, images may have other sizes too.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Model,
        mean: Sequence[float],
        std: Sequence[float],
        stochastic_depth: float = 0.0,
        classes: int = CLASSES,
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
        # The output of a pre-activation block is a sum that was neither normalised nor activated.
        self.norm = nn.BatchNorm2d(width) if model.block == "preactivation" else None
        self.classifier = nn.Linear(width * (model.last_map // model.pool) ** 2, classes)

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
        """Return the output of each layer, (B, C_i, side, side), and the logits (B, classes)."""
        x = self.stem(self.normalize(images))
        x = x if self.norm else self._activation(x)
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        x = self._activation(self.norm(x)) if self.norm else x
        logits: Tensor = self.classifier(self._pool(x).flatten(1))
        return features, logits

    def _pool(self, x: Tensor) -> Tensor:
        whole = self.model.pool == self.model.last_map
        pool = F.avg_pool2d if self.model.pool_kind == "average" else F.max_pool2d
        # amax is not used because its gradient searches for the maxima again and divides by their number. When it is
        # compiled in bfloat16, it finds none.
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
    classes: int = CLASSES,
) -> ResNet:
    """Return a network in channels_last memory, initialised from `seed`; the caller's random state is restored.

    Args:
        model, mean, std, stochastic_depth, classes: see `ResNet`.
        seed: seed of the initialization.
        bn_momentum: momentum of the batch norms.
        initialization: kaiming for a normal distribution by fan-out (He et al., arXiv:1502.01852); dirac for the same,
            except that the first filters of each convolution in the layers pass on their input channels unchanged
            (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498).
        images: raw training images (B, 3, H, W) from which a whitening stem is computed on their device, or None to
            leave it random.
    """
    with torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` would seed the GPUs as well.
        torch.default_generator.manual_seed(seed)
        net = ResNet(model, mean, std, stochastic_depth, classes)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    if initialization == "dirac":
        for module in net.layers.modules():
            # The convolutions of squeeze-and-excitation, which have a bias, keep the random initialization, because
            # their outputs do not correspond to their input channels.
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.dirac_(module.weight[: module.in_channels].detach())
    if isinstance(net.stem, Whitening) and images is not None:
        net.to(images.device)
        net.stem.fit(net.normalize(images))
    return net.to(memory_format=torch.channels_last)
