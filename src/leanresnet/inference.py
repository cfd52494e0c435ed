"""Images of any kind, as the network takes them, and what it says of them."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from leanresnet.checkpoint import DESCRIPTION, Checkpoint
from leanresnet.config import IMAGE_SIZE
from leanresnet.errors import DataError, StorageError

SUFFIXES = (".jpeg", ".jpg", ".png")
MODELS = ("baseline", "teacher", "student")
BATCH_SIZE = 500


def find_models(folder: Path) -> list[str]:
    """Which of the pipeline's models lie in `folder`.

    Raises:
        StorageError: none of them.
    """
    found = [name for name in MODELS if (folder / name / DESCRIPTION).exists()]
    if not found:
        raise StorageError(f"{folder}: holds no model, accepted: a folder with any of {', '.join(MODELS)}")
    return found


def find_images(places: Sequence[Path]) -> list[Path]:
    """Files as they are named; of a folder, the JPEG and PNG files in it and below, sorted.

    Raises:
        StorageError: there is no such place, or no image in a folder.
    """
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise StorageError(f"{place}: does not exist, accepted: images ({', '.join(SUFFIXES)}) and folders of them")
        images = [place]
        if place.is_dir():
            images = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not images:
            raise StorageError(f"{place}: holds no image, accepted: {', '.join(SUFFIXES)}")
        found += images
    return found


def read_image(path: Path) -> Tensor:
    """(3, 32, 32) uint8: its middle square, upright, scaled with antialiasing.

    Raises:
        StorageError: it cannot be read.
        DataError: it is not a whole image.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    return decode(content, str(path))


def decode(content: bytes, name: str) -> Tensor:
    """As `read_image`, of a file's content; `name` is what an error calls it."""
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not a whole image, accepted: JPEG or PNG") from error
    square = ImageOps.fit(upright, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


@torch.no_grad()
def probabilities(model: Checkpoint, images: Tensor) -> Tensor:
    """(B, classes) float32, of images (B, 3, 32, 32) uint8."""
    device = next(model.net.buffers()).device
    parts = [model.net(part.to(device)).float().softmax(1).cpu() for part in images.split(BATCH_SIZE)]
    return torch.cat(parts)


def classify(model: Checkpoint, paths: Sequence[Path]) -> Iterator[tuple[Path, dict[str, float]]]:
    """Each path with the probability of each class, the likeliest first."""
    for start in range(0, len(paths), BATCH_SIZE):
        part = paths[start : start + BATCH_SIZE]
        said = probabilities(model, torch.stack([read_image(path) for path in part]))
        for path, row in zip(part, said, strict=True):
            yield path, {model.classes[place]: float(row[place]) for place in row.argsort(descending=True)}
