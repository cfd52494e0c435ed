"""A reader of the Python archives of CIFAR-10 and CIFAR-100 that does not run code from it.

The batches are Python 2 pickles, and unpickling can call any function. This reader resolves only three names, each to
an inert class that stores bytes. numpy is called only after their type and shape have been checked.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

import io
import lzma
import pickle
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from leanresnet.data.splits import Split
from leanresnet.errors import DataError

PIXELS = 3 * 32 * 32


class Layout(NamedTuple):
    """The content of an official archive.

    Attributes:
        title: name of the data set in messages.
        folder: the folder of all members.
        train, test: names of the batches.
        meta: name of the member with the class names.
        names, labels: keys of the class names in `meta`, and of the labels in a batch.
        classes: number of classes.
        md5: digest of each member by its name.
        sha256: digest of the archive.
    """

    title: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    names: bytes
    labels: bytes
    classes: int
    md5: dict[str, str]
    sha256: str


def _layout(title: str, official: type[CIFAR10], labels: bytes, classes: int, sha256: str) -> Layout:
    meta = official.meta
    train, test = (tuple(name for name, _ in each) for each in (official.train_list, official.test_list))
    md5 = dict((*official.train_list, *official.test_list, (meta["filename"], meta["md5"])))
    names = meta["key"].encode()
    return Layout(title, official.base_folder, train, test, meta["filename"], names, labels, classes, md5, sha256)


# CIFAR-100 has fine labels and those of 20 groups of classes; the fine ones are the classes.
LAYOUTS = {
    "cifar10": _layout(
        "CIFAR-10", CIFAR10, b"labels", 10, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    ),
    "cifar100": _layout(
        "CIFAR-100", CIFAR100, b"fine_labels", 100, "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
    ),
}


class _Array:
    """A replacement of numpy's `_reconstruct` that only keeps the pickled state."""

    state: tuple[Any, ...] = ()

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class _Dtype:
    """A replacement of numpy's `dtype` that only keeps the type's code."""

    def __init__(self, *arguments: Any) -> None:
        self.code = arguments[0] if arguments else None

    def __setstate__(self, state: object) -> None:
        pass


class _BatchReader(pickle.Unpickler):
    """An unpickler that refuses every name except those that arrays need."""

    _inert: ClassVar[dict[tuple[str, str], type]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._inert[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it calls {module}.{name}") from None


def read_archive(path: Path, dataset: str = "cifar10") -> tuple[Split, Split]:
    """Read the archive of a data set of `LAYOUTS`, a tar file, compressed or not.

    Returns:
        The training and the test split.

    Raises:
        DataError: if a file is missing or damaged, a member lies outside of the archive's folder or is a link or a
            device, a pickle calls code, or pixels and labels do not fit together.
    """
    layout = LAYOUTS[dataset]
    members = _read_members(path, layout)
    where = f"{path}: {layout.meta}"
    try:
        classes = tuple(name.decode("ascii") for name in _unpickle(members[layout.meta], where)[layout.names])
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(f"{where} has no list of class names, expected: {layout.title}'s python archive") from error
    if len(classes) != layout.classes:
        raise DataError(f"{where} has {len(classes)} class names, expected: {layout.classes}")

    def joined(names: tuple[str, ...]) -> Split:
        batches = [_batch(members[name], f"{path}: {name}", layout) for name in names]
        images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return Split(torch.from_numpy(images), torch.from_numpy(labels), classes, dataset)

    return joined(layout.train), joined(layout.test)


def pack_folder(folder: Path, layout: Layout = LAYOUTS["cifar10"]) -> bytes:
    """Return the batches of an unpacked archive as a tar file, whose bytes depend only on the content of the batches.

    Raises:
        DataError: if a batch cannot be read.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(layout.md5):
            try:
                content = (folder / name).read_bytes()
            except OSError as error:
                raise DataError(
                    f"{folder / name}: cannot be read ({error.strerror}), expected: {layout.title}'s batches"
                ) from error
            info = tarfile.TarInfo(f"{layout.folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def _read_members(path: Path, layout: Layout) -> dict[str, bytes]:
    wanted, expected = set(layout.md5), f"expected: {layout.title}'s python archive"
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r:*") as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                if place.is_absolute() or ".." in place.parts or place.parts[:1] != (layout.folder,):
                    raise DataError(f"{path}: member {member.name!r} lies outside {layout.folder}/, {expected}")
                if not (member.isfile() or member.isdir()):
                    raise DataError(
                        f"{path}: member {member.name!r} is a link or a device, expected: files and folders"
                    )
                if place.name in wanted and len(place.parts) == 2 and member.isfile():
                    content = tar.extractfile(member)
                    assert content is not None
                    found[place.name] = content.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        raise DataError(f"{path}: not a readable archive ({_one_line(error)}), {expected}") from error
    if missing := sorted(wanted - set(found)):
        raise DataError(f"{path}: lacks {layout.folder}/{missing[0]}, {expected} with its {len(wanted)} members")
    return found


def _unpickle(content: bytes, where: str) -> dict[Any, Any]:
    try:
        value = _BatchReader(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise nearly any exception
        raise DataError(f"{where} is refused: {_one_line(error)}, expected: a pickle of numbers and text") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} holds {type(value).__name__}, expected: a dictionary")
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _batch(content: bytes, where: str, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 3, 32, 32) uint8 and labels (N,) int64 of one pickled batch.

    Raises:
        DataError: if the pixels or the labels are not those of a batch.
    """
    batch = _unpickle(content, where)
    data, labels = batch.get(b"data"), batch.get(layout.labels)
    match data:
        case _Array(state=(_, (int(rows), int(columns)), _Dtype(code=b"u1"), False, bytes(raw))):
            pass
        case _:
            raise DataError(f"{where} has no array of pixels, expected: uint8 rows of {PIXELS}")
    if columns != PIXELS or rows < 1 or len(raw) != rows * columns:
        raise DataError(f"{where} has {rows} x {columns} pixels in {len(raw)} bytes, expected: uint8 rows of {PIXELS}")
    if (
        not isinstance(labels, list)
        or len(labels) != rows
        or not all(type(n) is int and 0 <= n < layout.classes for n in labels)
    ):
        raise DataError(
            f"{where} has labels that do not fit its {rows} images, expected: one of 0 to {layout.classes - 1} each"
        )
    return np.frombuffer(raw, np.uint8).reshape(rows, 3, 32, 32), np.array(labels, np.int64)
