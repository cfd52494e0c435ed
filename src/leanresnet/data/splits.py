"""Splits of a data set: how they are drawn, and how each is stored in one safetensors file."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from leanresnet.config.schema import IMAGE_SIZE, check_part
from leanresnet.errors import ConfigError, DataError
from leanresnet.files import save_safetensors


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        images: (N, 3, 32, 32) uint8, RGB.
        labels: (N,) int64, indices into `classes`.
        classes: names of the classes.
        dataset: name of the data set.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    dataset: str

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        chosen = torch.from_numpy(indices)
        return Split(self.images[chosen], self.labels[chosen], self.classes, self.dataset)

    def counts(self) -> dict[str, int]:
        """Return the number of images of each class, by name."""
        found = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, found, strict=True))

    def first_of_classes(self, most: int) -> list[int]:
        """Return the index of the first image of each class, of at most `most` classes; a class may have no image."""
        return [int((self.labels == label).nonzero()[0]) for label in self.labels.unique()[:most]]

    @cached_property
    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, for images in [0, 1].

        They are computed from exact counts of the pixel values, so they do not depend on the order of the images or the
        number of threads.
        """
        values = torch.arange(256, dtype=torch.float64)
        channels = self.images.unbind(1)
        counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels]).double()
        total = counts.sum(1)
        mean = counts @ values / total
        variance = counts @ values**2 / total - mean**2
        return tuple((mean / 255).tolist()), tuple((variance.sqrt() / 255).tolist())

    def digest(self) -> str:
        """Return the SHA-256 of the pixels and labels, which does not depend on the format of a file."""
        content = hashlib.sha256(self.images.contiguous().numpy().tobytes())
        content.update(self.labels.numpy().tobytes())
        return content.hexdigest()


def hold_out(split: Split, count: int, seed: int, key: str = "split.validation") -> tuple[Split, Split]:
    """Divide a split in two, with the same proportions of classes; both parts keep the order of the images.

    Args:
        count: number of images to hold out.
        seed: seed of the choice.
        key: the key of params.yaml that `count` comes from, for error messages.

    Returns:
        (rest, held out)

    Raises:
        ConfigError: if one of the parts would have fewer images than there are classes.
        DataError: if a class has fewer than two images.
    """
    # The import takes a second, and only the split stage needs it.
    from sklearn.model_selection import train_test_split

    try:
        check_part(key, count, len(split), len(split.classes))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    rarest, images = min(split.counts().items(), key=lambda item: item[1])
    if images < 2:
        raise DataError(f"training images: {images} of class {rarest!r}, expected: at least 2 of each class")
    rest, held = train_test_split(
        np.arange(len(split)), test_size=count, random_state=seed, stratify=split.labels.numpy()
    )
    return split.take(np.sort(rest)), split.take(np.sort(held))


def save_split(split: Split, path: Path) -> None:
    tensors = {"images": split.images.contiguous(), "labels": split.labels}
    save_safetensors(tensors, path, {"dataset": split.dataset, "classes": split.classes})


def load_split(path: Path) -> Split:
    """Read a file that `save_split` wrote.

    Raises:
        DataError: if the file is missing, damaged or not a split.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
            return _checked(Split(images, labels, tuple(about["classes"]), about["dataset"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a split ({error}), expected: a file that `leanresnet split` wrote") from error


def load_splits(first: Path, second: Path) -> tuple[Split, Split]:
    """Read two splits of the same data set.

    Raises:
        DataError: if a file is not a split, they belong to different data sets, or they have the same images.
    """
    one, other = load_split(first), load_split(second)
    if (one.dataset, one.classes) != (other.dataset, other.classes):
        expected = f"the data set and the classes of {first}, {one.dataset} of {', '.join(one.classes)}"
        raise DataError(f"{second}: {other.dataset} of {', '.join(other.classes)}, expected: {expected}")
    if torch.equal(one.images, other.images):
        raise DataError(f"{second}: the images of {first}, expected: another split")
    return one, other


def _checked(split: Split) -> Split:
    """Return the split; raise ValueError if its types, shapes or values are not those that `Split` documents."""
    images, labels = split.images, split.labels
    if images.dtype != torch.uint8 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"images are {images.dtype} of {list(images.shape)}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(f"labels are {labels.dtype} of {list(labels.shape)}")
    names = (*split.classes, split.dataset)
    classes = len(split.classes)
    if not all(isinstance(name, str) for name in names) or not len(set(split.classes)) == classes >= 2:
        raise ValueError(f"names are {names}"[:200])
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels are {int(labels.min())} to {int(labels.max())}")
    return split
