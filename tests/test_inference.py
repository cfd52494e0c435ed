"""Files of real encoders in, classes out."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import outside_environment
from helpers import CLASSES, random_images, tiny_model, tiny_net
from PIL import Image
from torch import Tensor

from leanresnet.checkpoint import load_model, save_model
from leanresnet.errors import DataError, StorageError
from leanresnet.inference import classify, find_images, find_models, probabilities, read_image


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tiny_net().state_dict(), tiny_model(), CLASSES, {"name": "tiny"}, tmp_path / "model")
    return tmp_path / "model"


def write(image: Tensor, path: Path) -> None:
    """(1 or 3, H, W) uint8."""
    Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(path, quality=100)


def predict(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["leanresnet", "predict", "--model", "model", *arguments]
    return subprocess.run(command, cwd=folder, env=outside_environment(), capture_output=True, text=True)


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


def test_more_than_a_batch_is_the_same_as_one_by_one(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, images = load_model(model), random_images(7)
    monkeypatch.setattr("leanresnet.inference.BATCH_SIZE", 3)
    one_by_one: list[Tensor] = [probabilities(loaded, image[None])[0] for image in images]
    torch.testing.assert_close(probabilities(loaded, images), torch.stack(one_by_one))


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(DataError, match=r"image\.png: not a whole image, accepted: JPEG or PNG"):
        read_image(tmp_path / "image.png")


def test_nothing_to_predict_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no image"):
        find_images([tmp_path])
    with pytest.raises(StorageError, match="does not exist"):
        find_images([tmp_path / "absent.png"])


def test_the_pipelines_models_are_found_in_order(model: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no model, accepted: a folder with any of baseline, teacher, student"):
        find_models(tmp_path)
    for name in ("student", "baseline", "other"):
        shutil.copytree(model, tmp_path / name)
    assert find_models(tmp_path) == ["baseline", "student"]


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
    (tmp_path / "photos" / "two.png").write_bytes(b"no image")
    broken = predict(tmp_path, "photos")
    assert (broken.returncode, broken.stdout, broken.stderr.count("\n")) == (3, "", 1)
