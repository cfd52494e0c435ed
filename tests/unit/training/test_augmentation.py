"""Policies, cutout and mixing: against one image at a time, and against torchvision."""

from statistics import median

import numpy as np
import pytest
import torch
from helpers import augmentation_settings, random_images, tiny_net
from torch import Tensor
from torchvision.transforms import v2

from leanresnet.config.schema import Augmentation
from leanresnet.data.splits import Split
from leanresnet.training import loader as module
from leanresnet.training.augmentation import (
    POLICY,
    POLICY_GROUP,
    apply_policy,
    crop_and_flip,
    cut_out,
    draw,
    mix_pairs,
    pad,
    seed_of,
)
from leanresnet.training.loader import TrainBatches
from leanresnet.training.loop import objective_of
from leanresnet.training.losses import CrossEntropy

LABELS = torch.arange(40) % 10


def split_of(images: Tensor) -> Split:
    return Split(images, torch.arange(len(images)) % 10, tuple("abcdefghij"), "random")


def epoch_of(settings: Augmentation, split: Split, number: int = 1) -> tuple[Tensor, Tensor]:
    images, labels = zip(*TrainBatches(split, 20, settings, seed=0).epoch(number), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("side", [1, 8, 9, 32])
def test_cutout_equals_filling_one_image_at_a_time(side: int) -> None:
    images = random_images(60)
    holes = torch.randint(32, (60, 2), generator=torch.Generator().manual_seed(1))
    holes[:4] = torch.tensor([[0, 0], [31, 31], [0, 31], [16, 16]])
    color = torch.tensor([10, 20, 30], dtype=torch.uint8)
    expected = images.numpy().copy()
    for image, (row, column) in zip(expected, holes.tolist(), strict=True):
        top, left = row - side // 2, column - side // 2
        image[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = color[:, None, None]
    assert np.array_equal(cut_out(images, holes, side, color).numpy(), expected)


def test_an_epoch_cuts_holes_of_the_mean_colour_where_it_drew_them() -> None:
    split = split_of(random_images(40))
    settings = augmentation_settings(flip=0.0, crop_padding=0, cutout=6)
    draws = draw(40, settings, 0, 1)
    color = torch.tensor([round(255 * value) for value in split.channel_statistics[0]], dtype=torch.uint8)
    assert torch.equal(epoch_of(settings, split)[0], cut_out(split.images[draws.order], draws.holes, 6, color))
    assert len({tuple(hole) for hole in draws.holes.tolist()}) > 30


POLICIES = pytest.mark.parametrize(
    ("name", "policy"), [("trivial_augment", v2.TrivialAugmentWide), ("rand_augment", v2.RandAugment)]
)


@POLICIES
def test_a_policy_gives_what_torchvision_gives(name: str, policy: type[v2.Transform]) -> None:
    images = random_images(POLICY_GROUP)
    for epoch in range(1, 11):
        torch.manual_seed(seed_of(seed_of(0, epoch), POLICY))
        order = torch.randperm(len(images))
        assert torch.equal(apply_policy(images, name, seed=0, epoch=epoch)[order], policy()(images[order]))


@POLICIES
def test_a_batch_has_many_of_a_policys_draws(name: str, policy: type[v2.Transform]) -> None:
    """Copies of one image: groups share a draw and most have their own, and a batch is none of the groups."""
    groups = 12
    image = random_images(1).expand(groups * POLICY_GROUP, -1, -1, -1)
    distinct, sizes = apply_policy(image, name, seed=0, epoch=1).flatten(1).unique(dim=0, return_counts=True)
    assert groups // 2 < len(distinct) <= groups
    assert all(size % POLICY_GROUP == 0 for size in sizes.tolist())
    settings = augmentation_settings(flip=0.0, crop_padding=0, auto_augment=name)
    for images, _ in TrainBatches(split_of(image), POLICY_GROUP, settings, seed=0).epoch(1):
        assert len(images.flatten(1).unique(dim=0)) > groups // 2


def test_a_policy_runs_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def counted(images: Tensor, name: str, seed: int, epoch: int) -> Tensor:
        ran.append(epoch)
        return apply_policy(images, name, seed, epoch)

    monkeypatch.setattr(module, "apply_policy", counted)
    batches = TrainBatches(split_of(random_images(40)), 20, augmentation_settings(auto_augment="rand_augment"), seed=0)
    for number in (1, 1, 2, 2, 1):
        next(batches.epoch(number))
    assert ran == [1, 2, 1]


@pytest.mark.parametrize("changes", [{"auto_augment": "trivial_augment"}, {"mix": "mixup"}, {"mix": "cutmix"}])
def test_what_images_undergo_leaves_a_gpus_random_state(
    changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network's own draws come from there, and a resumed epoch must see those of a whole one."""

    def reseeded(seed: int) -> None:
        pytest.fail(f"the GPUs' generators were set to {seed}")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded)
    epoch_of(augmentation_settings(**changes), split_of(random_images(40)))


def test_a_policy_is_drawn_anew_each_epoch_and_leaves_the_global_random_state() -> None:
    images = random_images(4 * POLICY_GROUP)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = apply_policy(images, "trivial_augment", seed=0, epoch=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, apply_policy(images, "trivial_augment", seed=0, epoch=1))
    assert not torch.equal(first, apply_policy(images, "trivial_augment", seed=0, epoch=2))
    assert not torch.equal(first, apply_policy(images, "trivial_augment", seed=1, epoch=1))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("seed", [0, 5])
def test_an_epoch_crops_what_the_policy_made(seed: int, mode: str) -> None:
    split = split_of(random_images(40))
    settings = augmentation_settings(flip=0.0, crop_padding=4, padding_mode=mode, auto_augment="trivial_augment")
    batches = TrainBatches(split, 40, settings, seed)
    for number in (1, 2, 3):
        draws = draw(40, settings, seed, number)
        padded = pad(apply_policy(split.images, "trivial_augment", seed, number), 4, mode)
        expected = crop_and_flip(padded, draws.order, draws.rows, draws.columns, draws.flips)
        assert torch.equal(next(batches.epoch(number))[0], expected)


def mixed(kind: str, step: int = 0, share: float = 1.0) -> tuple[Tensor, Tensor]:
    settings = augmentation_settings(mix=kind, mix_alpha=1.0, mix_share=share)
    return mix_pairs(random_images(40), LABELS, settings, 0, 1, step, 10)


def test_the_share_of_a_pair_is_drawn_with_its_alpha_anew_for_each_seed_epoch_and_step() -> None:
    images = random_images(8)

    def share(alpha: float, seed: int = 0, epoch: int = 1, step: int = 0) -> float:
        settings = augmentation_settings(mix="mixup", mix_alpha=alpha, mix_share=1.0)
        return float(mix_pairs(images, LABELS[:8], settings, seed, epoch, step, 10)[1].max())

    # The Beta distribution of a large alpha is narrow around one half, and most of a small one's mass is at the ends.
    assert max(share(1e4, step=step) for step in range(10)) < 0.55
    assert median(share(0.05, step=step) for step in range(10)) > 0.95
    assert len({share(1.0), share(1.0, seed=1), share(1.0, epoch=2), share(1.0, step=1)}) == 4


def test_images_have_holes_also_where_batches_are_mixed() -> None:
    split = split_of(random_images(40))
    unmixed = augmentation_settings(cutout=8, mix="cutmix", mix_share=0.0)
    assert torch.equal(epoch_of(unmixed, split)[0], epoch_of(augmentation_settings(cutout=8), split)[0])


def test_mixup_weighs_pixels_as_labels() -> None:
    images = random_images(40).float()
    found, shares = mixed("mixup")
    weight = shares[0, LABELS[0]]
    assert 0 < weight < 1
    torch.testing.assert_close(found, weight * images + (1 - weight) * images.roll(1, 0), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(shares.sum(1), torch.ones(40))


def test_cutmix_takes_a_box_as_large_as_the_share_of_its_label() -> None:
    images = random_images(40)
    for step in range(5):
        found, shares = mixed("cutmix", step)
        taken = ((found == images.roll(1, 0)) & (found != images)).any(1)
        inside = taken.any(0)
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        box = torch.zeros(32, 32, dtype=torch.bool)
        if len(rows):
            box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        assert torch.equal(found, torch.where(box, images.roll(1, 0), images))
        torch.testing.assert_close(shares[0, LABELS[0]], 1 - box.float().mean())


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_share_of_the_batches_is_mixed_each_by_its_own_weight(kind: str) -> None:
    weights = [float(mixed(kind, step, share=0.5)[1][0, LABELS[0]]) for step in range(60)]
    # 30 expected, deviation 4
    assert 15 < sum(weight == 1 for weight in weights) < 45
    assert len(set(weights)) > 10
    images, shares = mixed(kind, share=0.0)
    assert torch.equal(images.to(torch.uint8), random_images(40))
    assert torch.equal(shares.argmax(1), LABELS)
    assert torch.equal(shares.sum(1), torch.ones(40))


def test_mixed_batches_come_from_the_epoch_and_lie_in_channels_last_memory() -> None:
    split = split_of(random_images(40))
    for kind in ("mixup", "cutmix"):
        settings = augmentation_settings(mix=kind)
        batches = TrainBatches(split, 20, settings, seed=0)
        for images, labels in batches.epoch(1):
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert labels.shape == (20, 10)
        assert torch.equal(epoch_of(settings, split)[0], epoch_of(settings, split)[0])
        assert not torch.equal(epoch_of(settings, split, 2)[0], epoch_of(settings, split)[0])


def test_the_right_answer_of_a_mixed_image_is_the_class_with_the_larger_share() -> None:
    net, images = tiny_net().eval(), random_images(20)
    chosen = net(images).argmax(1)
    shares = 0.7 * torch.eye(10)[chosen] + 0.3 * torch.eye(10)[(chosen + 1) % 10]
    _, right = objective_of(net, CrossEntropy(0.0))(images, shares)
    assert int(right) == 20
    _, right = objective_of(net, CrossEntropy(0.0))(images, shares.roll(1, 1))
    assert int(right) == 0
