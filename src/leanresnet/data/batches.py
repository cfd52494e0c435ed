"""Batches from images that stay on the device as uint8: one gather a batch, no workers.

What an epoch sees is a function of (seed, epoch) alone: the order, the offsets and the
flips of all its images are drawn at its start, and step k reads the k-th slice of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leanresnet.config import IMAGE_SIZE, Augmentation, Progressive
from leanresnet.data.splits import Split


@dataclass(frozen=True)
class Draws:
    """The random choices of one epoch, a row an image of the split, in the order of training.

    Shapes: order (N,) int64; rows, columns (N,) int64 in 0..2*padding; flips (N,) bool.
    """

    order: Tensor
    rows: Tensor
    columns: Tensor
    flips: Tensor


def draw(count: int, augmentation: Augmentation, seed: int, epoch: int) -> Draws:
    """The choices of an epoch, drawn on the CPU so that every device sees the same ones."""
    # The generator keeps 32 bits; Knuth's multiplier sets the epochs of one seed far from those of the next.
    generator = torch.Generator().manual_seed((seed * 2654435761 + epoch) % 2**32)
    offsets = 2 * augmentation.crop_padding + 1
    order = torch.randperm(count, generator=generator)
    rows = torch.randint(offsets, (count,), generator=generator)
    columns = torch.randint(offsets, (count,), generator=generator)
    flips = torch.rand(count, generator=generator) < augmentation.flip
    if augmentation.flip_mode == "alternating":
        flips = (draw_flips(count, augmentation.flip, seed) ^ (epoch % 2 == 0))[order]
    return Draws(order, rows, columns, flips)


def draw_flips(count: int, flip: float, seed: int) -> Tensor:
    """(count,) bool, which images an alternating flip mirrors in the odd epochs; the even ones mirror the others.

    So two epochs show each image once as it is and once mirrored (Jordan, arXiv:2404.00498, section 3.6).
    """
    generator = torch.Generator().manual_seed(seed * 2654435761 % 2**32)
    return torch.rand(count, generator=generator) < flip


def pad(images: Tensor, padding: int, mode: str) -> Tensor:
    """(N, 3, H, W) with `padding` pixels more on each side, as (N, H + 2p, W + 2p, 3)."""
    last = images.permute(0, 2, 3, 1)
    if mode == "constant":
        return F.pad(last, (0, 0, padding, padding, padding, padding)).contiguous()
    # torch reflects no uint8, and a float copy of CIFAR-10 takes most of a gigabyte.
    end = last.shape[1] - 1
    place = end - (end - torch.arange(-padding, end + 1 + padding).abs()).abs()
    return last[:, place[:, None], place].contiguous()


def crop_and_flip(padded: Tensor, chosen: Tensor, rows: Tensor, columns: Tensor, flips: Tensor) -> Tensor:
    """Crop each chosen image at its own offset and mirror those of `flips`, in one gather.

    Shapes: padded (N, H, W, 3); chosen (B,) places in it; rows, columns (B,) the top left
        corner; flips (B,) bool -> (B, 3, 32, 32) in channels_last memory.
    """
    span = torch.arange(IMAGE_SIZE, device=padded.device)
    across = torch.where(flips[:, None], span.flip(0), span)
    crops = padded[chosen[:, None, None], (rows[:, None] + span)[:, :, None], (columns[:, None] + across)[:, None, :]]
    return crops.permute(0, 3, 1, 2)


class TrainBatches:
    """Shuffled, augmented batches of one size; the incomplete one at an epoch's end is dropped."""

    def __init__(
        self,
        split: Split,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        device: torch.device | None = None,
        progressive: Progressive | None = None,
    ) -> None:
        self._padded = pad(split.images, augmentation.crop_padding, augmentation.crop_mode).to(device)
        self._labels = split.labels.to(device)
        self._augmentation = augmentation
        self._progressive = progressive
        self._seed = seed
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self._labels) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images (B, 3, 32, 32) uint8, labels (B,)) of one epoch; scaled down, images are float in 0..255."""
        draws = draw(len(self._labels), self._augmentation, self._seed, number)
        device = self._labels.device
        order, rows = draws.order.to(device), draws.rows.to(device)
        columns, flips = draws.columns.to(device), draws.flips.to(device)
        for step in range(len(self)):
            part = slice(step * self.batch_size, (step + 1) * self.batch_size)
            chosen = order[part]
            images = crop_and_flip(self._padded, chosen, rows[part], columns[part], flips[part])
            if self._progressive is not None and number <= self._progressive.epochs:
                images = F.interpolate(images.float(), size=self._progressive.size, mode="bilinear", antialias=True)
            yield images, self._labels[chosen]


class EvalBatches:
    """Every image once, in order, unchanged."""

    def __init__(self, split: Split, batch_size: int, device: torch.device | None = None) -> None:
        self._images = split.images.contiguous(memory_format=torch.channels_last).to(device)
        self._labels = split.labels.to(device)
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self._images.split(self._batch_size), self._labels.split(self._batch_size), strict=True)
