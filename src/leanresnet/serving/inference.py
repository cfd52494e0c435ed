"""The predictions of a network for image files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from leanresnet.config.schema import MODELS
from leanresnet.data.images import SUFFIXES, read_image
from leanresnet.errors import DataError, LeanResNetError, StorageError
from leanresnet.models.checkpoint import DESCRIPTION, Checkpoint

BATCH_SIZE = 500


def find_models(folder: Path) -> list[str]:
    """Return the names of the pipeline's models in `folder`.

    Raises:
        StorageError: if there is none.
    """
    found = [name for name in MODELS if (folder / name / DESCRIPTION).exists()]
    if not found:
        raise StorageError(f"{folder}: holds no model, expected: a folder with any of {', '.join(MODELS)}")
    return found


def find_images(places: Sequence[Path]) -> list[Path]:
    """Return the paths of images.

    Args:
        places: files, and folders. A folder stands for the JPEG and PNG files in it and its subfolders, sorted and
            without hidden ones.

    Raises:
        StorageError: if a place does not exist, or a folder has no image.
    """
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise StorageError(f"{place}: does not exist, expected: images ({', '.join(SUFFIXES)}) and folders of them")
        images = [place]
        if place.is_dir():
            images = sorted(path for path in place.rglob("*") if _is_image(path, place))
        if not images:
            raise StorageError(f"{place}: holds no image, expected: {', '.join(SUFFIXES)}")
        found += images
    return found


def _is_image(path: Path, folder: Path) -> bool:
    """Return whether a file is an image by its name, and not hidden.

    On disks of other systems, macOS writes a hidden file `._x.png` beside `x.png` that is not an image.
    """
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


@torch.no_grad()
def probabilities(model: Checkpoint, images: Tensor) -> Tensor:
    """Return the probability of each class.

    Shapes: images (B, 3, 32, 32) uint8 -> (B, classes) float32, on the CPU.

    Raises:
        DataError: if a probability is not finite, which is possible even if all weights are.
    """
    device = next(model.net.buffers()).device
    parts = [model.net(part.to(device)).float().softmax(1).cpu() for part in images.split(BATCH_SIZE)]
    found = torch.cat(parts)
    if not found.isfinite().all():
        wrong = "a predicted probability is NaN, expected: a model whose training did not diverge"
        raise DataError(f"model {model.about['name']}: {wrong}")
    return found


def classify(model: Checkpoint, paths: Sequence[Path]) -> Iterator[tuple[Path, dict[str, float] | LeanResNetError]]:
    """Iterate over the paths, each with the probability of each class, the most likely first, or with an error.

    Raises:
        DataError: if a probability is not finite.
    """
    for start in range(0, len(paths), BATCH_SIZE):
        read = [(path, _read_or_error(path)) for path in paths[start : start + BATCH_SIZE]]
        images = [image for _, image in read if isinstance(image, Tensor)]
        predictions = iter(probabilities(model, torch.stack(images))) if images else iter([])
        for path, image in read:
            if isinstance(image, LeanResNetError):
                yield path, image
            else:
                yield path, _likeliest_first(model.classes, next(predictions))


def _read_or_error(path: Path) -> Tensor | LeanResNetError:
    try:
        return read_image(path)
    except LeanResNetError as error:
        return error


def _likeliest_first(classes: Sequence[str], shares: Tensor) -> dict[str, float]:
    return {classes[place]: float(shares[place]) for place in shares.argsort(descending=True)}
