"""What training does to images: whole batches of uint8 at once, on the device they lie on.

Every random choice is a function of (seed, epoch): those of an image are drawn at the
epoch's start, those of a pair from the epoch's and the step's number.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from leanresnet.config.schema import CLASSES, IMAGE_SIZE, Augmentation

# Images that share what a policy drew: alone, each takes 16 times as long. They are any of the epoch's, so that those
# of a batch have little in common.
POLICY_GROUP = 64
# What else an epoch draws has a number beside those of its steps, which count from 0: no two share a stream.
POLICY, NETWORK = -1, -2


@dataclass(frozen=True)
class AugmentationDraws:
    """The random choices of one epoch, a row an image of the split, in the order of training.

    Shapes: order (N,) int64; rows, columns (N,) int64 in 0..2*padding; flips (N,) bool;
    holes (N, 2) int64, row and column of the centre of a cutout, in 0..31.
    """

    order: Tensor
    rows: Tensor
    columns: Tensor
    flips: Tensor
    holes: Tensor

    def to(self, device: torch.device) -> "AugmentationDraws":
        return AugmentationDraws(**{name: choices.to(device) for name, choices in vars(self).items()})


def draw(count: int, augmentation: Augmentation, seed: int, epoch: int) -> AugmentationDraws:
    """The choices of an epoch, drawn on the CPU so that every device sees the same ones."""
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
    """(count,) bool, which images an alternating flip mirrors in the odd epochs; the even ones mirror the others.

    So two epochs show each image once as it is and once mirrored (Jordan, arXiv:2404.00498, section 3.6).
    """
    generator = torch.Generator().manual_seed(seed_of(seed, 0))
    return torch.rand(count, generator=generator) < flip


def apply_policy(images: Tensor, name: str, seed: int, epoch: int) -> Tensor:
    """An epoch's images (N, 3, H, W) uint8, each under operations that torchvision's policy drew.

    trivial_augment: Müller and Hutter, "TrivialAugment" (arXiv:2103.10158), the wide space;
    rand_augment: Cubuk et al., "RandAugment" (arXiv:1909.13719), two operations of magnitude 9.
    """
    policy = {"trivial_augment": v2.TrivialAugmentWide, "rand_augment": v2.RandAugment}[name]()
    changed = torch.empty_like(images)
    with _global_draws(seed_of(seed_of(seed, epoch), POLICY)):
        for group in torch.randperm(len(images)).to(images.device).split(POLICY_GROUP):
            changed[group] = policy(images[group])
    return changed


def pad(images: Tensor, padding: int, mode: str) -> Tensor:
    """(N, 3, H, W) with `padding` pixels more on each side, as (N, H + 2p, W + 2p, 3)."""
    last = images.permute(0, 2, 3, 1)
    if mode == "constant":
        return F.pad(last, (0, 0, padding, padding, padding, padding)).contiguous()
    # torch reflects no uint8, and a float copy of CIFAR-10 takes most of a gigabyte.
    end = last.shape[1] - 1
    place = end - (end - torch.arange(-padding, end + 1 + padding, device=images.device).abs()).abs()
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


def cut_out(images: Tensor, holes: Tensor, side: int, color: Tensor) -> Tensor:
    """Fill a square of `side` pixels in each image; at the edge, what of it lies within.

    DeVries and Taylor, "Cutout" (arXiv:1708.04552).

    Shapes: images (B, 3, H, W); holes (B, 2), row and column of the pixel in, or behind, the
        middle; color (3,) of the images' type.
    """
    span = torch.arange(IMAGE_SIZE, device=images.device)
    first = holes - side // 2
    inside = (span >= first[..., None]) & (span < first[..., None] + side)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]
    return torch.where(hole[:, None], color[:, None, None], images)


def mix_pairs(
    images: Tensor, labels: Tensor, augmentation: Augmentation, seed: int, epoch: int, step: int
) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with the next one, and their labels, by torchvision's MixUp or CutMix.

    Zhang et al., "mixup" (arXiv:1710.09412); Yun et al., "CutMix" (arXiv:1905.04899).

    Shapes: images (B, 3, H, W), labels (B,) -> images, float for mixup; labels (B, 10), in a
        batch that stays as it is too.
    """
    mixing = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[augmentation.mix]
    images = images.float() if augmentation.mix == "mixup" else images
    shares = F.one_hot(labels, CLASSES).float()
    with _global_draws(seed_of(seed_of(seed, epoch), step)):
        if float(torch.rand(())) < augmentation.mix_share:
            images, shares = mixing(alpha=augmentation.mix_alpha)(images, shares)
    return images.contiguous(memory_format=torch.channels_last), shares


@contextmanager
def _global_draws(seed: int) -> Iterator[None]:
    """Inside, the CPU's global generator, which is all that torchvision draws from, begins at `seed`.

    The network draws from the GPUs', which `torch.manual_seed` would set too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def seed_of(seed: int, number: int) -> int:
    """A generator's seed, of 32 bits; Knuth's multiplier sets one seed's numbers far from the next one's."""
    return (seed * 2654435761 + number) % 2**32
