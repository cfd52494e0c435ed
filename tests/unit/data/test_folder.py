"""A folder of class folders: which images it holds, how they are identified, and what is refused."""

import hashlib
import struct
import subprocess
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanresnet.config.schema import Download
from leanresnet.data.folder import digest, hold_out_test, list_files, read_images
from leanresnet.data.images import MOST_PIXELS, read_image
from leanresnet.data.sources import fetch_source, known_size, read_source
from leanresnet.data.splits import hold_out
from leanresnet.errors import DataError, StorageError

NAMES = ("a", "big cats", "Straße", "éclair", "猫", "قطة")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six classes with seven images each, of other sizes and colours."""
    for number, name in enumerate(NAMES):
        place = tmp_path / "images" / name
        place.mkdir(parents=True)
        for image in range(7):
            color = (40 * number, 30 * image, 200)
            suffix = ("png", "jpg", "JPEG")[image % 3]
            Image.new("RGB", (20 + 9 * image, 50), color).save(place / f"{image} x.{suffix}")
    return tmp_path / "images"


def settings(folder: Path) -> Download:
    return Download(
        dataset="folder",
        size=1,
        md5="0" * 32,
        sha256=digest(list_files(folder)),
        mirrors=("https://127.0.0.1/never-asked",),
    )


def fetched(folder: Path, out: Path) -> None:
    fetch_source(settings(folder), out, folder)


def test_images_and_classes_are_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    fetched(folder, tmp_path / "out")
    train, test = read_source(tmp_path / "out")
    assert train.classes == test.classes == tuple(sorted(NAMES))
    assert (len(train), len(test)) == (33, 9)
    assert min(train.counts().values()) >= 5
    assert min(test.counts().values()) >= 1
    seen = {
        (split.classes[label], tuple(image.flatten().tolist()))
        for split in (train, test)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    }
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert seen == {(path.parent.name, tuple(read_image(path).flatten().tolist())) for path in files}


def test_the_test_split_is_the_same_each_time_and_the_source_needs_no_folder(folder: Path, tmp_path: Path) -> None:
    fetched(folder, tmp_path / "one")
    fetched(folder, tmp_path / "two")
    moved = folder.rename(tmp_path / "elsewhere")
    one, two = (read_source(tmp_path / name)[1].digest() for name in ("one", "two"))
    assert one == two
    described = settings(moved)
    assert known_size(described, tmp_path / "one", None) == known_size(described, tmp_path / "none", moved) == (6, 33)
    assert known_size(described.model_copy(update={"sha256": "0" * 64}), tmp_path / "one", None) is None


def test_the_digest_is_what_sha256sum_prints(folder: Path) -> None:
    command = "(LC_ALL=C; sha256sum */* | sha256sum)"
    done = subprocess.run(command, cwd=folder, shell=True, env={"PATH": "/usr/bin:/bin"}, stdout=-1)  # noqa: S602
    assert done.stdout.decode().split()[0] == digest(list_files(folder))


def rename_image(folder: Path) -> None:
    (folder / "a" / "0 x.png").rename(folder / "a" / "9 x.png")


def rename_class(folder: Path) -> None:
    (folder / "a").rename(folder / "b")


def remove_image(folder: Path) -> None:
    (folder / "a" / "0 x.png").unlink()


def change_pixel(folder: Path) -> None:
    Image.new("RGB", (20, 50), (1, 0, 200)).save(folder / "a" / "0 x.png")


@pytest.mark.parametrize("change", [rename_image, rename_class, remove_image, change_pixel])
def test_every_change_is_another_data_set(change: Callable[[Path], None], folder: Path, tmp_path: Path) -> None:
    before = settings(folder)
    change(folder)
    found = digest(list_files(folder))
    message = f"images: SHA-256 {found}, expected: {before.sha256} of download.sha256; if .*, set it to {found}"
    with pytest.raises(DataError, match=message):
        fetch_source(before, tmp_path / "out", folder)
    with pytest.raises(DataError, match=message):
        known_size(before, tmp_path / "out", folder)
    assert not (tmp_path / "out").exists()


def test_hidden_files_place_and_composed_accents_change_nothing(folder: Path) -> None:
    before = digest(list_files(folder))
    (folder / ".DS_Store").write_text("x")
    (folder / "a" / "._0 x.png").write_text("x")
    (folder / "éclair").rename(folder / unicodedata.normalize("NFD", "éclair"))
    files = list_files(folder.rename(folder.with_name("moved")))
    assert digest(files) == before
    assert {name for name, _ in files} == set(NAMES)


def save(mode: str, suffix: str, value: object) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, (48, 40), value).save(path.with_suffix(suffix))  # type: ignore[arg-type]


def upside_down(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (0, 0, 64, 32))
    image.save(path.with_suffix(".jpg"), exif=exif, quality=100)


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((40, 40), 100 * 257, np.uint16)).save(path.with_suffix(".png"))


KINDS: dict[str, tuple[Callable[[Path], None], tuple[int, int]]] = {
    "grey": (save("L", ".png", 100), (100, 100)),
    "grey with transparency": (save("LA", ".png", (100, 255)), (100, 100)),
    "black and white": (save("1", ".png", 1), (255, 255)),
    "a palette": (save("P", ".png", 0), (0, 0)),
    "transparent": (save("RGBA", ".png", (9, 9, 9, 0)), (255, 255)),
    "CMYK": (save("CMYK", ".jpg", (0, 0, 0, 155)), (100, 100)),
    "16 bits": (sixteen_bits, (100, 100)),
    "one pixel": (lambda path: Image.new("L", (1, 1), 100).save(path.with_suffix(".png")), (100, 100)),
    "a thin line": (lambda path: Image.new("L", (3000, 1), 100).save(path.with_suffix(".png")), (100, 100)),
    "large": (lambda path: Image.new("L", (4000, 4000), 100).save(path.with_suffix(".png")), (100, 100)),
    "upside down": (upside_down, (255, 0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind_are_taken(kind: str, folder: Path, tmp_path: Path) -> None:
    """The top row and the bottom row as one grey each."""
    write, (top, bottom) = KINDS[kind]
    write(folder / "a" / "8")
    (added,) = (folder / "a").glob("8.*")
    fetched(folder, tmp_path / "out")
    splits = read_source(tmp_path / "out")
    expected = read_image(added)
    assert any((split.images == expected).all((1, 2, 3)).any() for split in splits)
    assert (expected[:, 0].float() - top).abs().max() <= 3
    assert (expected[:, -1].float() - bottom).abs().max() <= 3
    assert torch.equal(expected, read_image(added))


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"8\.png: not a whole image"),
        (b"GIF89a text", r"8\.png: not a whole image"),
        (b"cut", r"8\.png: not a whole image"),
        (png_of(60_000, 60_000), rf"8\.png: 60,000 x 60,000 pixels, expected: up to {MOST_PIXELS:,}"),
    ],
    ids=["empty", "another format", "corrupt", "huge"],
)
def test_a_damaged_image_is_named_and_nothing_is_stored(
    content: bytes, says: str, folder: Path, tmp_path: Path
) -> None:
    if content == b"cut":
        whole = (folder / "a" / "0 x.png").read_bytes()
        content = whole[: len(whole) // 2]
    (folder / "a" / "8.png").write_bytes(content)
    (folder / "猫" / "9.png").write_bytes(b"")
    with pytest.raises(DataError, match=rf"{says}.*; 1 other file is refused, too"):
        fetched(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    def refused(says: str) -> None:
        with pytest.raises(DataError, match=says):
            list_files(folder)

    for make, says in (
        (lambda: (folder / "a" / "deeper").mkdir(), r"a/deeper: not an image, expected: only \.jpeg, \.jpg, \.png"),
        (lambda: (folder / "a" / "x.webp").touch(), r"x\.webp: not an image"),
        (lambda: (folder / "readme.txt").touch(), r"readme\.txt: not a folder, expected: a folder of images for each"),
        (lambda: (folder / "none").mkdir(), "none: 0 images, expected: at least 5 of each class"),
        (lambda: (folder / "new\nline").mkdir(), "line: not a name for a class, expected: up to 100 printable"),
        (lambda: (folder / ("x" * 101)).mkdir(), "not a name for a class, expected: up to 100 printable"),
    ):
        before = set(folder.rglob("*"))
        make()
        refused(says)
        for path in set(folder.rglob("*")) - before:
            path.rmdir() if path.is_dir() else path.unlink()
    for place in sorted(folder.iterdir())[1:]:
        place.rename(tmp_path / place.name)
    refused("images: 1 class folders, expected: at least 2")


def test_a_folder_that_is_not_there_or_not_named_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere: cannot be read .*, expected: a folder that has a folder of"):
        list_files(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"expected: the path of your images through --archive or LEANRESNET_FOLDER"):
        fetch_source(settings(folder), tmp_path / "out", None)


def test_contents_count_and_not_times(folder: Path, tmp_path: Path) -> None:
    assert hashlib.sha256().hexdigest() == digest([])
    path = folder / "a" / "0 x.png"
    before = digest(list_files(folder))
    path.touch()
    assert digest(list_files(folder)) == before


def test_accents_are_the_same_however_a_system_composes_them(folder: Path) -> None:
    found = set()
    for form in ("NFC", "NFD"):
        (before,) = (folder / "a").glob("0 *")
        before.rename(folder / "a" / unicodedata.normalize(form, "0 é.png"))
        found.add(digest(list_files(folder)))
    assert len(found) == 1


def test_the_images_that_are_held_out_do_not_depend_on_params(folder: Path) -> None:
    whole = read_images(list_files(folder))
    assert hold_out_test(whole)[1].digest() == hold_out(whole, 9, seed=0)[1].digest()
