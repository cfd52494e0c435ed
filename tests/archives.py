"""Small CIFAR-10 archives in the official layout, and their hostile variants.

Every byte is written here, as Python 2 wrote it, so that no reader is tested against its own writer.
"""

import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"
META = "batches.meta"
MEMBERS = (*TRAIN, TEST, META)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES = 40


def pixels(member: str) -> np.ndarray:
    """Rows (IMAGES, 3072) uint8 of a batch: red, green and blue planes, unlike those of any other batch."""
    return np.random.default_rng(MEMBERS.index(member)).integers(0, 256, (IMAGES, 3072), np.uint8)


def labels(member: str) -> list[int]:
    """Four images of each class, in an order of the batch's own."""
    return np.random.default_rng(100 + MEMBERS.index(member)).permutation(np.arange(IMAGES) % 10).tolist()


def encode(value: Any) -> bytes:
    """One value as Python 2's protocol 2 writes it: str is bytes, an array is numpy's `_reconstruct` and a state."""
    match value:
        case dict():
            return b"}(" + b"".join(encode(key) + encode(item) for key, item in value.items()) + b"u"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case int():
            return b"J" + struct.pack("<i", value)
        case np.ndarray():
            return _encode_array(value)
    raise TypeError(type(value))


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + encode(value) + b"."


def _encode_array(array: np.ndarray) -> bytes:
    code = array.dtype.str[1:].encode()
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    kind = b"cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"K\x00K\x01tR"
    kind += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(map(encode, array.shape)) + b"t"
    return empty + b"(K\x01" + shape + kind + b"\x89" + encode(array.tobytes()) + b"tb"


def batch(member: str, **changes: Any) -> bytes:
    """A batch's pickle; `changes` replace an entry, and None removes it."""
    content = {
        "batch_label": member.encode(),
        "labels": labels(member),
        "data": pixels(member),
        "filenames": [b"a.png"],
    }
    return pickled({key.encode(): value for key, value in (content | changes).items() if value is not None})


def meta(names: Sequence[str] = CLASSES) -> bytes:
    return pickled(
        {b"num_cases_per_batch": IMAGES, b"label_names": [name.encode() for name in names], b"num_vis": 3072}
    )


def calling(command: str) -> bytes:
    """A pickle that runs a shell command when it is loaded without care."""
    return b"\x80\x02cos\nsystem\n(" + encode(command.encode()) + b"tR."


def contents(changes: Mapping[str, bytes | None] = {}) -> dict[str, bytes]:
    """The seven members; `changes` replace one, and None removes it."""
    whole = {name: batch(name) for name in (*TRAIN, TEST)} | {META: meta()}
    return {name: body for name, body in (whole | changes).items() if body is not None}


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A further member, under any name, of any kind."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def write_archive(
    path: Path,
    changes: Mapping[str, bytes | None] = {},
    extra: Sequence[tarfile.TarInfo] = (),
    mode: str = "w:gz",
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for info in extra:
            tar.addfile(info)
        for name, body in contents(changes).items():
            info = tarfile.TarInfo(f"{FOLDER}/{name}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def fine(member: str, images: int = IMAGES) -> list[int]:
    """A label of CIFAR-100 for each image."""
    start = 0 if member == "train" else IMAGES
    return [(start + image) % 100 for image in range(images)]


def write_cifar100(path: Path, names: int = 100, images: int = IMAGES) -> Path:
    """A small archive of CIFAR-100 with its fine and coarse labels, and so many images in each batch."""
    meta_of = {b"fine_label_names": [b"fine %d" % n for n in range(names)], b"coarse_label_names": [b"coarse"] * 20}
    members = {"meta": pickled(meta_of), "file.txt~": b""}
    for name, of in (("train", TRAIN[0]), ("test", TEST)):
        rows = np.resize(pixels(of), (images, 3072))
        content = {b"fine_labels": fine(name, images), b"coarse_labels": [0] * images, b"data": rows}
        members[name] = pickled(content)
    with tarfile.open(path, "w:gz") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def write_folder(folder: Path, changes: Mapping[str, bytes | None] = {}) -> Path:
    """The batches unpacked, straight into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in contents(changes).items():
        (folder / name).write_bytes(body)
    return folder
