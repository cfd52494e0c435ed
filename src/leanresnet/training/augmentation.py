"""Augmentation of training images: whole batches of uint8 at once, on the device that holds them.

Every random choice is a function of (seed, epoch, step). The choices of single images are drawn for the whole epoch at
its start, and those of mixed pairs for each step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from leanresnet.config.schema import IMAGE_SIZE, Augmentation

# Number of images that share the operations drawn by a policy; drawing them for each image takes 16 times as long.
# The images of a group are chosen at random from the epoch, so few of them are in the same batch.
POLICY_GROUP = 64
# Numbers of the random streams of an epoch that belong to no step. Steps use the numbers from 0 on.
POLICY, NETWORK = -1, -2


@dataclass(frozen=True)
class AugmentationDraws:
    """The random choices of one epoch, one row per image, in the order of training.

    Shapes:
        order: (N,) int64, index of the image in the split.
        rows, columns: (N,) int64 in 0..2*padding, offset of the crop.
        flips: (N,) bool, whether the image is mirrored.
        holes: (N, 2) int64 in 0..31, row and column of the centre of a cutout.
    """

    order: Tensor
    rows: Tensor
    columns: Tensor
    flips: Tensor
    holes: Tensor

    def to(self, device: torch.device) -> "AugmentationDraws":
        return AugmentationDraws(**{name: choices.to(device) for name, choices in vars(self).items()})


def draw(count: int, augmentation: Augmentation, seed: int, epoch: int) -> AugmentationDraws:
    """Draw the choices of an epoch of `count` images on the CPU, so that they are the same for every device."""
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    offsets = 2 * augmentation.crop_padding + 1
    order = torch.randperm(count, generator=generator)
    rows = torch.randint(offsets, (count,), generator=generator)
    columns = torch.randint(offsets, (count,), generator=generator)
    flips = torch.rand(count, generator=generator) < augmentation.flip
    if augmentation.flip_mode == "alternating":
        flips = (draw_flips(count, augmentation.flip, seed) ^ (epoch % 2 == 0))[order]
    holes = torch.randint(IMAGE_SIZE, (count, 2), generator=generator)
    return AugmentationDraws(order, rows, columns, flips, holes)


def draw_flips(count: int, flip: float, seed: int) -> Tensor:
    """Draw which images an alternating flip mirrors in the odd epochs; the even epochs mirror the others.

    So two successive epochs show each image once unchanged and once mirrored.

    Source: Jordan, arXiv:2404.00498, section 3.6.

    Args:
        flip: probability that an image is mirrored in the odd epochs.

    Returns:
        (count,) bool.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, 0))
    return torch.rand(count, generator=generator) < flip


def apply_policy(images: Tensor, name: str, seed: int, epoch: int) -> Tensor:
    """Transform an epoch's images (N, 3, H, W) uint8 by one of torchvision's policies.

    Args:
        name: trivial_augment, by Müller and Hutter, "TrivialAugment" (arXiv:2103.10158), with the wide space; or
            rand_augment, by Cubuk et al., "RandAugment" (arXiv:1909.13719), with two operations of magnitude 9.
    """
    # Like `mix_pairs`, this imports torchvision only where it is used, because that takes more than a second.
    from torchvision.transforms import v2

    policy = {"trivial_augment": v2.TrivialAugmentWide, "rand_augment": v2.RandAugment}[name]()
    changed = torch.empty_like(images)
    with _global_draws(seed_of(seed_of(seed, epoch), POLICY)):
        for group in torch.randperm(len(images)).to(images.device).split(POLICY_GROUP):
            changed[group] = policy(images[group])
    return changed


def pad(images: Tensor, padding: int, mode: str) -> Tensor:
    """Add `padding` pixels on each side and move the channels to the end.

    Args:
        mode: constant for black pixels, or reflect for the mirrored image without its edge.

    Shapes: (N, 3, H, W) -> (N, H + 2 * padding, W + 2 * padding, 3).
    """
    last = images.permute(0, 2, 3, 1)
    if mode == "constant":
        return F.pad(last, (0, 0, padding, padding, padding, padding)).contiguous()
    # F.pad does not reflect uint8, and a float copy of CIFAR-10 takes most of a gigabyte.
    end = last.shape[1] - 1
    place = end - (end - torch.arange(-padding, end + 1 + padding, device=images.device).abs()).abs()
    return last[:, place[:, None], place].contiguous()


def crop_and_flip(padded: Tensor, chosen: Tensor, rows: Tensor, columns: Tensor, flips: Tensor) -> Tensor:
    """Crop each chosen image at its own offset and mirror those selected by `flips`, in one gather.

    Shapes:
        padded: (N, H, W, 3).
        chosen: (B,) int64, indices of the images in `padded`.
        rows, columns: (B,) int64, top left corners of the crops.
        flips: (B,) bool.
        output: (B, 3, 32, 32) in channels_last memory.
    """
    span = torch.arange(IMAGE_SIZE, device=padded.device)
    across = torch.where(flips[:, None], span.flip(0), span)
    crops = padded[chosen[:, None, None], (rows[:, None] + span)[:, :, None], (columns[:, None] + across)[:, None, :]]
    return crops.permute(0, 3, 1, 2)


def cut_out(images: Tensor, holes: Tensor, side: int, color: Tensor) -> Tensor:
    """Fill a square of `side` pixels in each image with `color`. At the edge, the square is cut off.

    Source: DeVries and Taylor, "Cutout" (arXiv:1708.04552).

    Shapes:
        images: (B, 3, 32, 32).
        holes: (B, 2), row and column of the pixel `side // 2` pixels below and right of the square's first one.
        color: (3,), with the type of the images.
    """
    span = torch.arange(IMAGE_SIZE, device=images.device)
    first = holes - side // 2
    inside = (span >= first[..., None]) & (span < first[..., None] + side)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]
    return torch.where(hole[:, None], color[:, None, None], images)


def mix_pairs(
    images: Tensor, labels: Tensor, augmentation: Augmentation, seed: int, epoch: int, step: int, classes: int
) -> tuple[Tensor, Tensor]:
    """Mix neighbouring images of a batch, and their labels, by torchvision's MixUp or CutMix.

    A batch is mixed with probability `augmentation.mix_share`. The labels have the same shape if it is not mixed.

    Sources: Zhang et al., "mixup" (arXiv:1710.09412); Yun et al., "CutMix" (arXiv:1905.04899).

    Shapes:
        images: (B, 3, H, W) -> the same, in channels_last memory, float for mixup.
        labels: (B,) int64 -> (B, classes) float, the share of each class.
    """
    from torchvision.transforms import v2

    mixing = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[augmentation.mix]
    images = images.float() if augmentation.mix == "mixup" else images
    shares = F.one_hot(labels, classes).float()
    with _global_draws(seed_of(seed_of(seed, epoch), step)):
        if float(torch.rand(())) < augmentation.mix_share:
            images, shares = mixing(alpha=augmentation.mix_alpha)(images, shares)
    return images.contiguous(memory_format=torch.channels_last), shares


@contextmanager
def _global_draws(seed: int) -> Iterator[None]:
    """Seed the CPU's global generator, from which torchvision draws, and restore its state on exit.

    The generators of the GPUs are left alone, because the network draws from them; `torch.manual_seed` would set them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def seed_of(seed: int, number: int) -> int:
    """Return a seed of 32 bits for stream `number` of `seed`; Knuth's multiplier keeps the streams of seeds apart."""
    return (seed * 2654435761 + number) % 2**32
