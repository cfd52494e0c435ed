"""Batches from images that stay on the device as uint8: one gather per batch, without worker processes.

The images of an epoch are a function of (seed, epoch), and step k reads the k-th slice of them. So an epoch can be
resumed at any step.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from leanresnet.config.schema import Augmentation, ProgressiveResizing
from leanresnet.data.splits import Split
from leanresnet.training.augmentation import apply_policy, crop_and_flip, cut_out, draw, mix_pairs, pad


class TrainBatches:
    """Shuffled and augmented batches of training images; an incomplete last batch of an epoch is dropped.

    Args:
        small: size of the images in the first epochs, or None for the full size in all epochs.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        device: torch.device | None = None,
        small: ProgressiveResizing | None = None,
    ) -> None:
        self._images = split.images.to(device)
        # Padded images, and the epoch for which a policy transformed them; 0 means not transformed.
        self._padded = 0, pad(self._images, augmentation.crop_padding, augmentation.padding_mode)
        self._labels, self._classes = split.labels.to(device), len(split.classes)
        self._color = (255 * torch.tensor(split.channel_statistics[0])).round().to(torch.uint8).to(device)
        self._augmentation = augmentation
        self._small = small
        self._seed = seed
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self._labels) // self.batch_size

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the batches of one epoch.

        Args:
            number: the epoch, from 1.
            first: number of batches to skip at the start.

        Yields:
            images: (B, 3, 32, 32) in 0..255, uint8 in channels_last memory. They are float after mixup or resizing,
                and smaller after resizing.
            labels: (B,) int64, or with mixing (B, classes) float, the share of each class.
        """
        settings, device = self._augmentation, self._labels.device
        draws = draw(len(self._labels), settings, self._seed, number).to(device)
        padded = self._padded_in(number)
        for step in range(first, len(self)):
            part = slice(step * self.batch_size, (step + 1) * self.batch_size)
            chosen = draws.order[part]
            images = crop_and_flip(padded, chosen, draws.rows[part], draws.columns[part], draws.flips[part])
            labels = self._labels[chosen]
            if settings.cutout:
                images = cut_out(images, draws.holes[part], settings.cutout, self._color)
            if settings.mix != "none":
                images, labels = mix_pairs(images, labels, settings, self._seed, number, step, self._classes)
            if self._small is not None and number <= self._small.epochs:
                images = F.interpolate(images.float(), size=self._small.size, mode="bilinear", antialias=True)
            yield images, labels

    def _padded_in(self, number: int) -> Tensor:
        """Return the padded images of an epoch, (N, H, W, 3).

        They are cached, because averaged weights read the start of an epoch once more.
        """
        settings = self._augmentation
        if settings.auto_augment != "none" and self._padded[0] != number:
            images = apply_policy(self._images, settings.auto_augment, self._seed, number)
            self._padded = number, pad(images, settings.crop_padding, settings.padding_mode)
        return self._padded[1]


class EvalBatches:
    """Batches of all images of a split, in order and unchanged."""

    def __init__(self, split: Split, batch_size: int, device: torch.device | None = None) -> None:
        self._images = split.images.contiguous(memory_format=torch.channels_last).to(device)
        self._labels = split.labels.to(device)
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self._images.split(self._batch_size), self._labels.split(self._batch_size), strict=True)
