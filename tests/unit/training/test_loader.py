"""Order, augmentation and memory of the batches."""

import numpy as np
import pytest
import torch
from helpers import augmentation_settings, random_images, synthetic_split
from scipy.stats import chisquare
from torch import Tensor

from leanresnet.config.schema import Augmentation, ProgressiveResizing
from leanresnet.data.splits import Split
from leanresnet.training.augmentation import AugmentationDraws, crop_and_flip, draw, draw_flips
from leanresnet.training.loader import EvalBatches, TrainBatches


def augmented_one_by_one(
    split: Split, draws: AugmentationDraws, settings: Augmentation
) -> tuple[np.ndarray, np.ndarray]:
    """The epoch's images and labels, one image at a time in numpy."""
    p, images = settings.crop_padding, []
    for place, row, column, flip in zip(draws.order, draws.rows, draws.columns, draws.flips, strict=True):
        padded = np.pad(split.images[place].numpy(), ((0, 0), (p, p), (p, p)), mode=settings.padding_mode)
        crop = padded[:, row : row + 32, column : column + 32]
        images.append(crop[:, :, ::-1] if flip else crop)
    return np.stack(images), split.labels.numpy()[draws.order.numpy()]


def epoch_of(batches: TrainBatches, number: int) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches.epoch(number), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("padding", [1, 4, 16])
@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_an_epoch_equals_augmenting_one_image_at_a_time(mode: str, padding: int) -> None:
    split = Split(random_images(40), torch.arange(40) % 10, tuple("abcdefghij"), "random")
    settings = augmentation_settings(flip=0.5, crop_padding=padding, padding_mode=mode)
    images, labels = epoch_of(TrainBatches(split, 8, settings, seed=3), 2)
    expected_images, expected_labels = augmented_one_by_one(split, draw(40, settings, 3, 2), settings)
    assert np.array_equal(images.numpy(), expected_images)
    assert np.array_equal(labels.numpy(), expected_labels)


def test_crop_and_flip_of_chosen_corners() -> None:
    padded = random_images(3).new_zeros(3, 36, 36, 3)
    padded[:] = torch.randint(256, padded.shape, generator=torch.Generator().manual_seed(0))
    rows, columns, flips = torch.tensor([0, 4, 2]), torch.tensor([4, 0, 1]), torch.tensor([False, True, True])
    crops = crop_and_flip(padded, torch.tensor([2, 0, 0]), rows, columns, flips)
    expected = [padded[2, 0:32, 4:36], padded[0, 4:36, 0:32].flip(1), padded[0, 2:34, 1:33].flip(1)]
    assert torch.equal(crops, torch.stack(expected).permute(0, 3, 1, 2))


def test_every_offset_and_flip_occurs_as_often_as_it_should() -> None:
    """Pixels that hold their own place tell the offset and the flip: 3 x 3 offsets, flips at 0.3."""
    count = 9000
    place = torch.arange(32, dtype=torch.uint8)
    image = torch.stack([place[:, None].expand(32, 32), place[None].expand(32, 32), torch.zeros(32, 32).byte()])
    split = Split(image.expand(count, -1, -1, -1), torch.zeros(count, dtype=torch.int64), ("a",), "places")
    settings = augmentation_settings(flip=0.3, crop_padding=1, padding_mode="constant")
    images, _ = epoch_of(TrainBatches(split, 1000, settings, seed=0), 1)
    rows = images[:, 0, 10, 10].long() - 9
    flips = (images[:, 1, 10, 11] < images[:, 1, 10, 10]).long()
    columns = torch.where(flips == 1, images[:, 1, 10, 21], images[:, 1, 10, 10]).long() - 9
    found = torch.bincount((rows * 3 + columns) * 2 + flips, minlength=18)
    expected = np.tile([count * 0.7 / 9, count * 0.3 / 9], 9)
    assert chisquare(found.numpy(), expected).pvalue > 0.01


@pytest.mark.parametrize(("flip", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_flips_never_and_always(flip: float, share: float) -> None:
    flips = draw(1000, augmentation_settings(flip=flip), 0, 1).flips
    assert float(flips.float().mean()) == share


def test_an_alternating_flip_mirrors_every_image_in_one_of_two_epochs() -> None:
    images = random_images(400)
    split = Split(images, torch.arange(400) % 10, tuple("abcdefghij"), "random")
    settings = augmentation_settings(flip=0.5, flip_mode="alternating", crop_padding=0)
    batches = TrainBatches(split, 40, settings, seed=4)
    mirrored = []
    for number in (1, 2, 3, 4):
        shown, order = epoch_of(batches, number)[0], draw(400, settings, 4, number).order
        as_it_is = (shown == images[order]).flatten(1).all(1)
        flipped = (shown == images[order].flip(3)).flatten(1).all(1)
        assert torch.equal(as_it_is, ~flipped)
        mirrored.append(torch.empty_like(flipped).index_put((order,), flipped))
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[0], mirrored[2])
    assert torch.equal(mirrored[1], mirrored[3])
    # 200 expected, deviation 10
    assert 160 < int(mirrored[0].sum()) < 240


def test_an_alternating_flip_mirrors_its_share_in_odd_epochs_and_other_images_with_another_seed() -> None:
    settings = augmentation_settings(flip=0.25, flip_mode="alternating")
    # The deviation is 0.01.
    assert [float(draw(2000, settings, 0, epoch).flips.float().mean()) for epoch in (1, 2)] == pytest.approx(
        [0.25, 0.75], abs=0.05
    )
    assert not torch.equal(draw_flips(100, 0.5, 0), draw_flips(100, 0.5, 1))


def test_a_hole_has_its_centre_at_any_pixel() -> None:
    rows, columns = draw(2000, augmentation_settings(), 0, 1).holes.T
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(32))


def test_small_epochs_scale_the_augmented_images_down() -> None:
    split, settings = synthetic_split(40), augmentation_settings(flip=0.5, crop_padding=2)
    progressive = ProgressiveResizing(epochs=2, size=16)
    batches = TrainBatches(split, 20, settings, 1, small=progressive)
    plain = TrainBatches(split, 20, settings, 1)
    assert [epoch_of(batches, number)[0].shape[2:] for number in (1, 2, 3)] == [(16, 16), (16, 16), (32, 32)]
    images, labels = epoch_of(batches, 2)
    whole, same_labels = epoch_of(plain, 2)
    assert torch.equal(labels, same_labels)
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each, _ in batches.epoch(1))
    # A triangle of support 2 pixels in source units on each side: away from the edge a fixed 4x4 weighting.
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    by_hand = (whole[:, :, 3:7, 5:9].float() * weights[:, None] * weights).sum((2, 3))
    torch.testing.assert_close(images[:, :, 2, 3], by_hand, atol=1e-3, rtol=1e-4)
    assert torch.equal(epoch_of(batches, 3)[0], epoch_of(plain, 3)[0])


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    split, settings = synthetic_split(60), augmentation_settings(flip=0.5, crop_padding=4)
    batches = TrainBatches(split, 10, settings, seed=5)
    first = [epoch_of(batches, number) for number in (1, 2, 3)]
    torch.manual_seed(99)
    images, labels = epoch_of(TrainBatches(split, 10, settings, seed=5), 3)
    assert torch.equal(images, first[2][0])
    assert torch.equal(labels, first[2][1])
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(epoch_of(TrainBatches(split, 10, settings, seed=6), 3)[0], images)


def test_no_two_pairs_of_seed_and_epoch_share_their_draws() -> None:
    settings = augmentation_settings(flip=0.5)
    pairs = [(seed, epoch) for seed in (0, 1, 2, 3, 2**16, 2**31 - 1) for epoch in range(1, 301)]
    draws = [draw(64, settings, seed, epoch) for seed, epoch in pairs]
    for part in ("order", "rows", "columns", "flips", "holes"):
        assert len({tuple(getattr(each, part).flatten().tolist()) for each in draws}) == len(pairs)


def test_drawing_leaves_the_global_random_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(10, augmentation_settings(), 0, 1)
    assert torch.equal(torch.get_rng_state(), before)


def numbered(count: int) -> Split:
    """Image i is filled with i."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    return Split(images.contiguous(), torch.arange(count), tuple(map(str, range(count))), "numbered")


def test_an_image_is_seen_at_most_once_an_epoch_and_the_incomplete_batch_is_dropped() -> None:
    settings = augmentation_settings(flip=0.5, crop_padding=0)
    batches = TrainBatches(numbered(47), 10, settings, seed=0)
    assert len(batches) == 4
    seen = [labels for _, labels in batches.epoch(1)]
    assert [len(labels) for labels in seen] == [10] * 4
    assert len(set(torch.cat(seen).tolist())) == 40


def test_what_an_epoch_drops_another_shows() -> None:
    batches = TrainBatches(numbered(47), 10, augmentation_settings(crop_padding=0), seed=0)
    assert {int(label) for number in range(1, 11) for label in epoch_of(batches, number)[1]} == set(range(47))


def test_labels_stay_with_their_images() -> None:
    images, labels = epoch_of(TrainBatches(numbered(40), 10, augmentation_settings(crop_padding=0), seed=0), 1)
    assert torch.equal(images[:, 0, 0, 0].long(), labels)


def test_without_augmentation_the_images_are_untouched() -> None:
    split = Split(random_images(30), torch.arange(30), tuple(map(str, range(30))), "random")
    images, labels = epoch_of(TrainBatches(split, 10, augmentation_settings(flip=0.0, crop_padding=0), seed=0), 1)
    assert torch.equal(images, split.images[labels])
    assert images.dtype == torch.uint8


def test_batches_lie_in_channels_last_memory() -> None:
    split = synthetic_split(20)
    for padding in (0, 2):
        for images, _ in TrainBatches(split, 10, augmentation_settings(crop_padding=padding), seed=0).epoch(1):
            assert images.is_contiguous(memory_format=torch.channels_last)
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in EvalBatches(split, 8))


def test_evaluation_covers_every_image_in_order_every_time() -> None:
    split = synthetic_split(47)
    batches = EvalBatches(split, 10)
    for _ in range(2):
        images, labels = zip(*batches, strict=True)
        assert [len(part) for part in labels] == [10, 10, 10, 10, 7]
        assert torch.equal(torch.cat(images), split.images)
        assert torch.equal(torch.cat(labels), split.labels)
