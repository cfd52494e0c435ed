"""A data set of the user's own: a folder that has a folder of images for each class.

The name of a class is the name of its folder. Class folders hold JPEG and PNG files of any size and mode; hidden files
are left out, as those that macOS and other systems add.
"""

import hashlib
import math
import unicodedata
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from leanresnet.data.images import SUFFIXES, read_image
from leanresnet.data.splits import Split, hold_out
from leanresnet.errors import DataError, LeanResNetError, StorageError
from leanresnet.files import file_hashes, not_read

TEST_SHARE, TEST_SEED = 0.2, 0
FEWEST_IMAGES = 5
LONGEST_NAME = 100
Files = list[tuple[str, Path]]


def list_files(folder: Path) -> Files:
    """Return (class, file) of each image, sorted by the path.

    Raises:
        StorageError: if a folder cannot be read.
        DataError: if there are fewer than two classes, a class has fewer than `FEWEST_IMAGES` images or a name that
            cannot be stored, or there is something other than images in class folders.
    """
    files: Files = []
    classes: dict[str, Path] = {}
    for place in _visible(folder):
        if not place.is_dir():
            raise DataError(f"{place}: not a folder, expected: a folder of images for each class")
        # Systems differ in how they compose accents in names of files.
        name = unicodedata.normalize("NFC", place.name)
        _check_name(name, place)
        if name in classes:
            raise DataError(f"{place}: the same name as {classes[name]!r}, expected: each class once")
        classes[name] = place
        images = _visible(place)
        for path in images:
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                raise DataError(f"{path}: not an image, expected: only {', '.join(SUFFIXES)} in the folder of a class")
        if len(images) < FEWEST_IMAGES:
            raise DataError(f"{place}: {len(images)} images, expected: at least {FEWEST_IMAGES} of each class")
        files += [(name, path) for path in images]
    if len(classes) < 2:
        raise DataError(f"{folder}: {len(classes)} class folders, expected: at least 2, each with its images")
    return sorted(files, key=lambda file: _path_of(*file))


def digest(files: Files) -> str:
    """Return the SHA-256 by which the files are identified: of their names and contents, and of nothing else.

    It is what `sha256sum */* | sha256sum` prints in the folder, in the locale C.
    """
    listed = hashlib.sha256()
    for name, path in files:
        listed.update(f"{file_hashes(path)[1]}  {_path_of(name, path)}\n".encode())
    return listed.hexdigest()


def read_images(files: Files) -> Split:
    """Read the images, each scaled to 32x32 as `predict` does.

    Raises:
        DataError: if a file is not a whole image or has too many pixels; the message names the first ones.
    """
    classes = sorted({name for name, _ in files})
    images: list[Tensor] = []
    refused: list[str] = []
    for _, path in tqdm(files, "images", unit=" files", leave=False, disable=None):
        try:
            images.append(read_image(path))
        except LeanResNetError as error:
            refused.append(str(error))
    if refused:
        more = len(refused) - 1
        others = f"; {more} other {'files are' if more > 1 else 'file is'} refused, too" if more else ""
        raise DataError(f"{refused[0]}{others}")
    labels = torch.tensor([classes.index(name) for name, _ in files])
    return Split(torch.stack(images), labels, tuple(classes), "folder")


def hold_out_test(whole: Split) -> tuple[Split, Split]:
    """Return training and test images; a fifth is held out for the test, the same for every seed in params.yaml."""
    return hold_out(whole, len(whole) - training_images(len(whole)), TEST_SEED)


def training_images(count: int) -> int:
    """Return how many of `count` images are not held out for the test."""
    return count - math.ceil(TEST_SHARE * count)


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        expected = "expected: a folder that has a folder of images for each class"
        raise StorageError(f"{not_read(folder, error)}, {expected}") from error


def _path_of(name: str, path: Path) -> str:
    return f"{name}/{unicodedata.normalize('NFC', path.name)}"


def _check_name(name: str, place: Path) -> None:
    """Refuse a name that a model cannot hold: MLflow, JSON and pictures need text of a reasonable length."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise DataError(f"{place}: not a name for a class, expected: up to {LONGEST_NAME} printable characters")
