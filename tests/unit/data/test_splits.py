"""Splits: how validation is held out, what a file keeps, and the digits."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import synthetic_split
from sklearn.datasets import load_digits

from leanresnet.data.digits import read_digits
from leanresnet.data.preview import samples
from leanresnet.data.sources import SIZES
from leanresnet.data.splits import Split, hold_out, load_split, load_splits, save_split
from leanresnet.errors import ConfigError, DataError

NAMES = tuple("abcdefghij")


def numbered(by_class: list[int]) -> Split:
    """Images that tell which they are: pixel (0, 0) holds an image's number in base 256."""
    labels = torch.repeat_interleave(torch.arange(len(by_class)), torch.tensor(by_class))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))]
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    numbers = torch.arange(len(labels))
    images[:, 0, 0, 0], images[:, 1, 0, 0] = numbers % 256, numbers // 256
    return Split(images, labels, NAMES[: len(by_class)], "numbered")


def numbers(split: Split) -> list[int]:
    return (split.images[:, 0, 0, 0].long() + 256 * split.images[:, 1, 0, 0].long()).tolist()


def test_a_tenth_of_equal_classes_is_a_tenth_of_each() -> None:
    rest, held = hold_out(numbered([500] * 10), 500, seed=0)
    assert set(rest.counts().values()) == {450}
    assert set(held.counts().values()) == {50}


def test_unequal_classes_keep_their_proportions() -> None:
    by_class = [100, 200, 300, 400]
    rest, held = hold_out(numbered(by_class), 100, seed=0)
    assert list(held.counts().values()) == [10, 20, 30, 40]
    assert list(rest.counts().values()) == [90, 180, 270, 360]


def test_sides_are_disjoint_whole_and_in_the_original_order() -> None:
    rest, held = hold_out(numbered([50] * 10), 60, seed=3)
    assert sorted(numbers(rest) + numbers(held)) == list(range(500))
    assert numbers(rest) == sorted(numbers(rest))
    assert numbers(held) == sorted(numbers(held))
    assert (len(rest), len(held)) == (440, 60)


def test_labels_stay_with_their_images() -> None:
    whole = numbered([30] * 10)
    for side in hold_out(whole, 40, seed=1):
        assert side.labels.tolist() == whole.labels[numbers(side)].tolist()
        assert (side.classes, side.dataset) == (whole.classes, whole.dataset)


def test_the_seed_alone_decides() -> None:
    whole = numbered([50] * 10)
    first, again, other = (numbers(hold_out(whole, 50, seed)[1]) for seed in (7, 7, 8))
    assert first == again
    assert first != other


@pytest.mark.parametrize("count", [9, 91])
def test_a_side_without_every_class_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"split.validation = {count}: expected: 10 to 90 of the 100 training images"):
        hold_out(numbered([10] * 10), count, seed=0)


@pytest.mark.parametrize("count", [10, 90])
def test_the_smallest_and_the_largest_hold_out_have_every_class(count: int) -> None:
    for side in hold_out(numbered([10] * 10), count, seed=0):
        assert all(side.counts().values())


@pytest.mark.parametrize("rarest", [0, 1])
def test_a_class_that_cannot_be_on_both_sides_is_refused(rarest: int) -> None:
    with pytest.raises(DataError, match=f"{rarest} of class 'b', expected: at least 2 of each class"):
        hold_out(numbered([20, rarest, 20]), 10, seed=0)


def test_channel_statistics_are_numpys_on_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images[:, 1] //= 3
    mean, std = Split(images, torch.zeros(50, dtype=torch.int64), NAMES, "random").channel_statistics
    exact = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, exact.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, exact.std((0, 2, 3)), rtol=1e-12)


def test_channel_statistics_do_not_depend_on_the_order() -> None:
    split = numbered([40] * 10)
    assert split.channel_statistics == split.take(np.arange(400)[::-1].copy()).channel_statistics


def test_a_saved_split_loads_as_it_was(tmp_path: Path) -> None:
    split = numbered([5] * 10)
    save_split(split, tmp_path / "new" / "split.safetensors")
    loaded = load_split(tmp_path / "new" / "split.safetensors")
    assert torch.equal(loaded.images, split.images)
    assert torch.equal(loaded.labels, split.labels)
    assert (loaded.images.dtype, loaded.labels.dtype) == (torch.uint8, torch.int64)
    assert (loaded.classes, loaded.dataset, loaded.digest()) == (split.classes, split.dataset, split.digest())


def test_a_split_saves_to_the_same_bytes(tmp_path: Path) -> None:
    saved = set()
    for number in range(8):
        save_split(numbered([5] * 10), tmp_path / f"{number}.safetensors")
        saved.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(saved) == 1


def test_the_digest_is_of_the_content() -> None:
    split = numbered([5] * 10)
    assert split.digest() == numbered([5] * 10).digest()
    assert split.digest() != split.take(np.arange(50)[::-1].copy()).digest()


@pytest.mark.parametrize("content", [None, b"", b"not a split", b"cut"])
def test_a_file_that_is_no_split_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "split.safetensors"
    if content is not None:
        save_split(numbered([5] * 10), path)
        path.write_bytes(path.read_bytes()[:-100] if content == b"cut" else content)
    with pytest.raises(DataError, match=r"split.safetensors: not a split .*, expected: "):
        load_split(path)


def test_tensors_of_something_else_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weights": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="not a split"):
        load_split(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": torch.zeros(20, 3, 32, 32)}, "images are torch.float32"),
        ({"images": torch.zeros(20, 3, 28, 28, dtype=torch.uint8)}, r"images are torch.uint8 of \[20, 3, 28, 28\]"),
        ({"images": torch.zeros((), dtype=torch.uint8)}, r"images are torch.uint8 of \[\]"),
        ({"labels": torch.zeros(20)}, "labels are torch.float32"),
        ({"labels": torch.zeros(19, dtype=torch.int64)}, r"labels are torch.int64 of \[19\]"),
        ({"labels": torch.full((20,), -1)}, "labels are -1 to -1"),
        ({"labels": torch.full((20,), 10)}, "labels are 10 to 10"),
        ({"classes": tuple("abc")}, "labels are 0 to 9"),
        ({"classes": ("a",)}, "names are"),
        ({"classes": ("a",) * 10}, "names are"),
        ({"classes": tuple(range(10))}, "names are"),
        ({"dataset": 5}, "names are"),
    ],
)
def test_what_does_not_fit_a_split_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    """Otherwise it would be an error somewhere in a training, or none."""
    save_split(dataclasses.replace(synthetic_split(20), **changes), tmp_path / "split.safetensors")
    with pytest.raises(DataError, match=rf"split\.safetensors: not a split \({says}.*\), expected: "):
        load_split(tmp_path / "split.safetensors")


def test_the_samples_are_an_image_of_each_class_that_a_split_has() -> None:
    rare = numbered([3, 0, 2])
    (axes,) = samples(rare).axes
    assert [title.get_text() for title in axes.texts] == [rare.classes[0], rare.classes[2]]
    first = [rare.labels.tolist().index(label) for label in (0, 2)]
    shown = [np.asarray(image.get_array()) for image in axes.images]
    expected = rare.images[first].permute(0, 2, 3, 1).numpy()
    assert all(np.array_equal(*pair) for pair in zip(shown, expected, strict=True))


def test_the_digits_are_images_like_cifars() -> None:
    train, test = read_digits()
    assert train.images.shape == (1437, 3, 32, 32)
    assert SIZES["digits"] == (len(train.classes), len(train))
    assert test.images.shape == (360, 3, 32, 32)
    for split in (train, test):
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
        assert split.classes == tuple("0123456789")
        assert split.dataset == "digits"
        assert torch.equal(split.images[:, 0], split.images[:, 1])
        assert (int(split.images.min()), int(split.images.max())) == (0, 255)
    assert min(train.counts().values()) >= 138
    assert min(test.counts().values()) >= 34


def test_the_digits_are_the_same_every_time() -> None:
    assert [split.digest() for split in read_digits()] == [split.digest() for split in read_digits()]


def test_splits_of_other_classes_do_not_belong_together(tmp_path: Path) -> None:
    """Two folders of images are both called so."""
    split = synthetic_split(20)
    save_split(split, tmp_path / "one")
    save_split(dataclasses.replace(split, classes=split.classes[::-1]), tmp_path / "other")
    with pytest.raises(DataError, match=r"other: synthetic of .*, expected: the data set and the classes of .*one, "):
        load_splits(tmp_path / "one", tmp_path / "other")
    save_split(synthetic_split(30, seed=1), tmp_path / "more")
    assert [len(each) for each in load_splits(tmp_path / "one", tmp_path / "more")] == [20, 30]


def test_the_same_images_are_no_two_splits(tmp_path: Path) -> None:
    for name in ("one", "copy"):
        save_split(synthetic_split(20), tmp_path / name)
    with pytest.raises(DataError, match=r"/copy: the images of .*/one, expected: another split$"):
        load_splits(tmp_path / "one", tmp_path / "copy")


def test_the_digits_that_are_held_out_stay_the_same() -> None:
    """Their figures are compared over versions."""
    assert read_digits()[1].labels[:20].tolist() == [1, 4, 8, 6, 5, 9, 9, 1, 3, 2, 2, 2, 0, 7, 4, 8, 1, 5, 3, 9]


def test_a_digit_is_scaled_about_its_middle() -> None:
    """The pixel x of 32 lies at (x + 1/2) / 4 - 1/2 of the 8, and beyond the outermost ones they go on."""
    grey = load_digits().images[0] * (255 / 16)
    places = (np.arange(32) + 0.5) / 4 - 0.5
    rows = np.stack([np.interp(places, np.arange(8), row) for row in grey])
    expected = torch.from_numpy(np.stack([np.interp(places, np.arange(8), column) for column in rows.T], 1))
    images = torch.cat([split.images[:, 0] for split in read_digits()])
    assert (images - expected).abs().flatten(1).amax(1).min() < 0.5 + 1e-3
