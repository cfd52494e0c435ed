"""Files of real encoders in, classes out."""

import io
import json
import os
import random
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import outside_environment
from forked import run_program
from helpers import CLASSES, random_images, tiny_model, tiny_net
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational
from torch import Tensor

from leanresnet.data import images as module
from leanresnet.data.images import MOST_PIXELS, decode, read_image
from leanresnet.errors import DataError, StorageError
from leanresnet.models.checkpoint import load_model, save_model
from leanresnet.serving.inference import classify, find_images, find_models, probabilities
from pipeline.cli import run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tiny_net().state_dict(), tiny_model(), CLASSES, {"name": "tiny"}, tmp_path / "model")
    return tmp_path / "model"


def write(image: Tensor, path: Path) -> None:
    """(1 or 3, H, W) uint8."""
    Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(path, quality=100)


def predict(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return run_program("predict", "--model", "model", *arguments, cwd=folder, env=outside_environment())


def test_an_image_of_the_networks_size_is_taken_as_it_is(model: Path, tmp_path: Path) -> None:
    images = random_images(3)
    for number, image in enumerate(images):
        write(image, tmp_path / f"{number}.png")
    loaded = load_model(model)
    said = list(classify(loaded, find_images([tmp_path])))
    with torch.no_grad():
        expected = loaded.net(images).softmax(1)
    assert [path.name for path, _ in said] == ["0.png", "1.png", "2.png"]
    for (_, shares), row in zip(said, expected, strict=True):
        assert shares == pytest.approx(dict(zip(CLASSES, row.tolist(), strict=True)), abs=1e-6)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_of_other_sizes_the_middle_square_is_scaled(tmp_path: Path) -> None:
    wide = torch.zeros(3, 64, 200, dtype=torch.uint8)
    wide[:, :, 68:132] = 200
    wide[:, :, 68:100] = 100
    write(wide, tmp_path / "wide.png")
    scaled = read_image(tmp_path / "wide.png")
    assert scaled.shape == (3, 32, 32)
    # Bicubic: it rings at the steps, also at those to what was cut off.
    assert scaled[:, :, 2:12].unique().tolist() == [100]
    assert scaled[:, :, 20:30].unique().tolist() == [200]
    write(wide[:, :5, :3], tmp_path / "small.png")
    assert read_image(tmp_path / "small.png").shape == (3, 32, 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_coloured_jpegs_become_three_channels(channels: int, tmp_path: Path) -> None:
    write(torch.full((channels, 40, 40), 90, dtype=torch.uint8), tmp_path / "image.JPG")
    (path,) = find_images([tmp_path])
    assert read_image(path).float().sub(90).abs().max() <= 1


def test_more_than_a_batch_is_the_same_as_one_by_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, images = load_model(model), random_images(7)
    monkeypatch.setattr("leanresnet.serving.inference.BATCH_SIZE", 3)
    one_by_one: list[Tensor] = [probabilities(loaded, image[None])[0] for image in images]
    torch.testing.assert_close(probabilities(loaded, images), torch.stack(one_by_one))
    paths = [tmp_path / f"{place}.png" for place in range(7)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    found = list(classify(loaded, paths))
    assert [path for path, _ in found] == paths
    for (_, answer), shares in zip(found, one_by_one, strict=True):
        assert isinstance(answer, dict)
        assert [answer[name] for name in loaded.classes] == pytest.approx(shares.tolist(), rel=1e-5)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """As PNG's specification has it; `rows` begin with their filter's byte, and `more` are chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def grey_of(content: bytes) -> Tensor:
    """(32, 32), of an image whose three channels are the same."""
    image = decode(content, "image")
    assert (image == image[:1]).all()
    return image[0]


INK = random_images(1)[0, 0].numpy()


def test_a_grey_image_of_16_bits_is_as_of_8() -> None:
    assert grey_of(encoded(Image.fromarray(INK.astype(np.uint16) * 257))).tolist() == INK.tolist()
    for value, nearest in ((128, 0), (129, 1), (32_896, 128), (65_280, 254), (65_535, 255)):
        assert grey_of(encoded(Image.fromarray(np.full((32, 32), value, np.uint16)))).unique().tolist() == [nearest]


@pytest.mark.parametrize("hidden", [0, 255])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_is_transparent_is_white(mode: str, hidden: int) -> None:
    """Black ink, whatever colour lies below where there is none."""
    grey = Image.fromarray(np.where(INK < 128, 0, hidden).astype(np.uint8))
    grey.putalpha(Image.fromarray(np.where(INK < 128, 255, 0).astype(np.uint8)))
    assert grey_of(encoded(grey.convert(mode))).tolist() == np.where(INK < 128, 0, 255).tolist()


def test_half_transparent_ink_is_half_as_dark() -> None:
    grey = Image.new("L", (32, 32))
    grey.putalpha(Image.fromarray(INK))
    assert grey_of(encoded(grey)).tolist() == (255 - INK).tolist()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_shade_of_grey_is_white(depth: int) -> None:
    """Black with every other pixel of the shade that the file declares transparent."""
    shade = {1: 1, 2: 2, 4: 5, 8: 77, 16: 0x1234}[depth]
    row = "".join(f"{value:0{depth}b}" for value in [0, shade] * 16)
    rows = (b"\0" + int(row, 2).to_bytes(len(row) // 8, "big")) * 32
    assert grey_of(png((32, 32), depth, 0, rows, chunk(b"tRNS", struct.pack(">H", shade))))[7].tolist() == [0, 255] * 16


def test_a_palette_may_be_transparent() -> None:
    rows = (b"\0" + bytes([0, 1, 2, 1] * 8)) * 32
    colours = chunk(b"PLTE", bytes([0, 0, 0, 9, 9, 9, 200, 200, 200])), chunk(b"tRNS", bytes([255, 0]))
    assert grey_of(png((32, 32), 8, 3, rows, *colours))[0].tolist() == [0, 255, 200, 255] * 8


def test_other_modes_are_taken_too(tmp_path: Path) -> None:
    assert grey_of(encoded(Image.fromarray(INK < 128))).tolist() == np.where(INK < 128, 255, 0).tolist()
    cyan = decode(encoded(Image.new("CMYK", (40, 40), (255, 0, 0, 0)), "JPEG", quality=100), "cyan")
    assert [round(float(channel.float().mean())) for channel in cyan] == [0, 255, 255]
    frames = [Image.new("RGB", (32, 32), (shade,) * 3) for shade in (10, 200)]
    assert grey_of(encoded(frames[0], save_all=True, append_images=frames[1:])).unique().tolist() == [10]


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    found[0x011A] = IFDRational(72, 1)
    return found


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_its_exif_block_says(orientation: int) -> None:
    image = Image.fromarray(random_images(1)[0].permute(1, 2, 0).numpy())
    upright = np.array(image)
    for turn, orientations in ((np.transpose, (5, 6, 7, 8)), (np.fliplr, (2, 3, 6, 7)), (np.flipud, (3, 4, 7, 8))):
        if orientation in orientations:
            upright = turn(upright, (1, 0, 2)) if turn is np.transpose else turn(upright)
    assert decode(encoded(image, exif=exif(orientation)), "image").permute(1, 2, 0).tolist() == upright.tolist()


def test_a_damaged_exif_block_still_says_how_an_image_stands() -> None:
    """A resolution whose type is text, which Pillow reads and cannot write again."""
    image = Image.fromarray(random_images(1)[0].permute(1, 2, 0).numpy())
    content = encoded(image, exif=exif(6))
    damaged = content.replace(struct.pack(">2H", 0x011A, 5), struct.pack(">2H", 0x011A, 2))
    assert damaged != content
    assert torch.equal(decode(with_right_sums(damaged), "image"), decode(content, "image"))


@pytest.mark.parametrize("damage", [lambda block: b"\0" * 8 + block[8:], lambda block: block[:6]])
def test_an_exif_block_that_cannot_be_read_turns_nothing(damage: Callable[[bytes], bytes]) -> None:
    image = Image.fromarray(random_images(1)[0].permute(1, 2, 0).numpy())
    block = exif(6).tobytes().removeprefix(b"Exif\0\0")
    damaged = encoded(image, exif=b"Exif\0\0" + damage(block))
    with pytest.raises((SyntaxError, struct.error)):
        Image.open(io.BytesIO(damaged)).getexif()
    assert torch.equal(decode(damaged, "image"), decode(encoded(image), "image"))


def test_an_exif_block_as_text_that_is_no_hexadecimal_number_turns_nothing() -> None:
    image = Image.fromarray(random_images(1)[0].permute(1, 2, 0).numpy())
    chunk = PngInfo()
    chunk.add_text("Raw profile type exif", "\nexif\n8\nno hexadecimal number\n")
    damaged = encoded(image, pnginfo=chunk)
    with pytest.raises(ValueError, match="hexadecimal"):
        Image.open(io.BytesIO(damaged)).getexif()
    assert torch.equal(decode(damaged, "image"), decode(encoded(image), "image"))


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    """Pillow keeps the upper byte of each sample, so pixels of this colour cannot be told from others."""
    samples = b"\0" + struct.pack(">3H", 0x1234, 0x5678, 0x9ABC) * 32
    colour = chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    assert decode(png((32, 32), 16, 2, samples * 32), "whole")[:, 0, 0].tolist() == [0x12, 0x56, 0x9A]
    with pytest.raises(DataError, match=r"^a\.png: a transparent colour of 16 bits, expected: an alpha channel for"):
        decode(png((32, 32), 16, 2, samples * 32, colour), "a.png")


@pytest.mark.parametrize("orientation", [0, 9, 2**16 - 1])
def test_an_orientation_that_is_none_turns_nothing(orientation: int) -> None:
    image = Image.fromarray(random_images(1)[0].permute(1, 2, 0).numpy())
    assert torch.equal(decode(encoded(image, exif=exif(orientation)), "image"), decode(encoded(image), "image"))


def test_no_more_is_read_than_the_largest_image_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/zero has no end."""
    image = tmp_path / "image.png"
    write(random_images(1)[0], image)
    size = image.stat().st_size
    monkeypatch.setattr(module, "MOST_BYTES", size)
    assert read_image(image).shape == (3, 32, 32)
    with pytest.raises(DataError, match=rf"^/dev/zero: too large, expected: up to {size:,} bytes$"):
        read_image(Path("/dev/zero"))
    monkeypatch.setattr(module, "MOST_BYTES", size - 1)
    with pytest.raises(DataError, match=r"image\.png: too large"):
        read_image(image)


@pytest.mark.parametrize("size", [(13_000, 13_000), (MOST_PIXELS + 1, 1), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanresnet.data.images._scaled", lambda _: pytest.fail("decoded"))
    with pytest.raises(DataError, match=rf"^big: {size[0]:,} x {size[1]:,} pixels, expected: up to 67,108,864$"):
        decode(png(size, 8, 2, b""), "big")


def samples() -> list[bytes]:
    """Small files of every kind, each with blocks of metadata."""
    colour = Image.fromarray(random_images(1)[0].permute(1, 2, 0).numpy()).resize((20, 16))
    about = exif(6)
    about[0x010F] = "maker"
    about.get_ifd(0x8769)[0x829A] = IFDRational(1, 60)
    about.get_ifd(0x8825)[2] = (IFDRational(52), IFDRational(31), IFDRational(12))
    grey, alpha = colour.convert("L"), colour.convert("RGBA")
    return [
        encoded(colour, "JPEG", exif=about),
        encoded(grey, "JPEG", exif=about, progressive=True),
        encoded(colour.convert("CMYK"), "JPEG", exif=about),
        encoded(alpha, exif=about, icc_profile=b"profile" * 9),
        encoded(colour.quantize(16), transparency=3, exif=about),
        encoded(Image.fromarray(np.array(grey).astype(np.uint16) * 257), transparency=257, exif=about),
        encoded(grey.convert("1"), transparency=1, exif=about),
        encoded(alpha, save_all=True, append_images=[alpha.rotate(90)], exif=about),
    ]


def with_right_sums(content: bytes) -> bytes:
    """A PNG whose chunks' checksums are right again, so that what they hold is looked at."""
    whole, place = bytearray(content), 8
    while place + 12 <= len(whole):
        end = place + 8 + int.from_bytes(whole[place : place + 4], "big")
        if end + 4 > len(whole):
            break
        whole[end : end + 4] = struct.pack(">I", zlib.crc32(whole[place + 4 : end]))
        place = end + 4
    return bytes(whole)


def mutated(content: bytes, dice: random.Random) -> bytes:
    """One to four bytes are others; or a part is cut out, or doubled."""
    whole = bytearray(content)
    if dice.random() < 0.8:
        for _ in range(dice.randint(1, 4)):
            whole[dice.randrange(2, len(whole))] = dice.choice([0, 1, 127, 128, 255, dice.randrange(256)])
    else:
        start, length = dice.randrange(2, len(whole)), dice.randint(1, 40)
        whole[start : start + length] = whole[start : start + length] * dice.choice([0, 2])
    is_png = content.startswith(b"\x89PNG") and dice.random() < 0.9
    return with_right_sums(bytes(whole)) if is_png else bytes(whole)


def test_damaged_files_are_read_or_refused() -> None:
    dice, outcomes = random.Random(17), {"read": 0, "refused": 0}
    for content in samples():
        assert decode(content, "image").shape == (3, 32, 32)
        for _ in range(250):
            try:
                image = decode(mutated(content, dice), "image")
            except DataError:
                outcomes["refused"] += 1
            else:
                assert (image.shape, image.dtype) == ((3, 32, 32), torch.uint8)
                outcomes["read"] += 1
    assert min(outcomes.values()) > 400


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(DataError, match=r"image\.png: not a whole image, expected: JPEG or PNG"):
        read_image(tmp_path / "image.png")


def test_nothing_to_predict_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no image"):
        find_images([tmp_path])
    with pytest.raises(StorageError, match="does not exist"):
        find_images([tmp_path / "absent.png"])


def test_the_pipelines_models_are_found_in_order(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no model, expected: a folder with any of baseline, teacher, student"):
        find_models(tmp_path)
    for name in ("student", "baseline", "other"):
        shutil.copytree(model, tmp_path / name)
    assert find_models(tmp_path) == ["baseline", "student"]


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(model: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    write(random_images(1)[0], tmp_path / "photos" / "one.png")
    table = predict(tmp_path, "photos", "--top", "2")
    assert (table.returncode, table.stderr) == (0, "")
    found = json.loads(predict(tmp_path, "photos", "--format", "json").stdout)
    ((file, shares),) = [(each["file"], each["classes"]) for each in found]
    assert (file, len(shares)) == ("photos/one.png", 3)
    first, second = list(shares.items())[:2]
    assert table.stdout.split() == [file, *(part for name, share in (first, second) for part in (f"{share:.2%}", name))]


def test_a_file_that_is_no_image_is_named_and_the_others_are_predicted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for number in (1, 4):
        write(random_images(1)[0], tmp_path / "photos" / f"{number}.png")
    for name in ("2.png", "3.jpg", "._1.png", "._4.png"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    for form in ("table", "json"):
        monkeypatch.setattr("sys.argv", ["leanresnet", "predict", "photos", "--model", "model", "--format", form])
        assert run() == DataError.exit_code
        said = capsys.readouterr()
        assert said.err.splitlines() == [
            f"error: photos/{name}: not a whole image, expected: JPEG or PNG" for name in ("2.png", "3.jpg")
        ]
        files = [each["file"] for each in json.loads(said.out)] if form == "json" else said.out.split()[::7]
        assert files == ["photos/1.png", "photos/4.png"]
    (tmp_path / "photos" / "1.png").unlink()
    (tmp_path / "photos" / "4.png").unlink()
    assert run() == DataError.exit_code
    assert json.loads(capsys.readouterr().out) == []


def test_a_name_that_is_no_text_is_printed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    write(random_images(1)[0], tmp_path / "one.png")
    (tmp_path / "one.png").rename(tmp_path / "photos" / os.fsdecode(b"\xff.png"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["leanresnet", "predict", "photos", "--model", "model", "--format", "json"])
    assert run() == 0
    assert json.loads(capsys.readouterr().out)[0]["file"] == "photos/\ufffd.png"


def test_an_answer_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """The weights are finite, and what they make of an image is not."""
    weights = tiny_net().state_dict() | {"stem.1.running_var": torch.full((8,), -1.0)}
    save_model(weights, tiny_model(), CLASSES, {"name": "tiny"}, tmp_path)
    with pytest.raises(DataError, match="model tiny: a predicted probability is NaN, expected: "):
        probabilities(load_model(tmp_path), random_images(1))


def test_of_a_folder_hidden_files_and_what_is_no_file_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "album.png").mkdir()
    (tmp_path / ".thumbnails").mkdir()
    for name in ("one.png", "._one.png", ".thumbnails/one.png", "album.png/two.jpg"):
        write(random_images(1)[0], tmp_path / name)
    assert [str(path.relative_to(tmp_path)) for path in find_images([tmp_path])] == ["album.png/two.jpg", "one.png"]
    assert find_images([tmp_path / "._one.png"]) == [tmp_path / "._one.png"]
