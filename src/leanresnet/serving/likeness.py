"""A check whether an image is like those that a network knows, since a network is confident about any image.

Source: Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors" (arXiv:2204.06507).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from leanresnet.models.resnet import ResNet

NEIGHBOURS = 5
# The share of the known images that count as like the others.
KNOWN_SHARE = 0.99
BATCH_SIZE = 250


class Likeness:
    """The features of known images, and the distance from their neighbours beyond which an image is unlike them.

    The distance of an image is the one to its `NEIGHBOURS`-th nearest known image, between features of unit length.

    Args:
        net: the network, in evaluation mode.
        images: (N, 3, 32, 32) uint8, more than `NEIGHBOURS` images that it was not trained on.
    """

    def __init__(self, net: ResNet, images: Tensor) -> None:
        self._net = net
        self._known = self._features(images)
        # The nearest of a known image is the image itself.
        distances = torch.cdist(self._known, self._known).kthvalue(NEIGHBOURS + 1).values
        self._limit = distances.quantile(KNOWN_SHARE)

    def is_unlike(self, image: Tensor) -> bool:
        """Return whether an image (3, 32, 32) uint8 is farther from the known ones than nearly all of them are."""
        distances = torch.cdist(self._features(image[None]), self._known)
        return bool(distances.kthvalue(NEIGHBOURS).values > self._limit)

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        device = self._net.mean.device
        parts = [self._net.forward_features(part.to(device))[0][-1] for part in images.split(BATCH_SIZE)]
        return F.normalize(torch.cat([part.float().mean((2, 3)).cpu() for part in parts]))
