"""A model on disk: what is read is what was written, or nothing is."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLASSES, random_images, tiny_model, tiny_net

from leanresnet.checkpoint import load_model, save_model
from leanresnet.config import Model
from leanresnet.errors import DataError, StorageError
from leanresnet.models.resnet import ResNet

MADE_BY: dict[str, Any] = {"name": "baseline", "stage": "train@baseline", "params": {"epochs": 3}, "train_md5": "abc"}


def save(net: ResNet, folder: Path, model: Model | None = None) -> Path:
    save_model(net.state_dict(), model or tiny_model(), CLASSES, MADE_BY, folder)
    return folder


def trained_net(seed: int = 0) -> ResNet:
    """With running statistics that are not the initial ones."""
    net = tiny_net(seed)
    net.train()(random_images(8))
    return net.eval()


def edit_description(folder: Path, **changes: Any) -> None:
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | changes))


def test_a_loaded_model_gives_the_same_logits(tmp_path: Path) -> None:
    net = trained_net()
    loaded = load_model(save(net, tmp_path))
    images = random_images(4, seed=1)
    assert not loaded.net.training
    assert torch.equal(loaded.net(images), net(images))
    assert loaded.net.state_dict().keys() == net.state_dict().keys()


def test_a_loaded_model_knows_what_it_is(tmp_path: Path) -> None:
    loaded = load_model(save(trained_net(), tmp_path))
    content = (tmp_path / "model.safetensors").read_bytes()
    assert loaded.md5 == hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert loaded.sha256 == hashlib.sha256(content).hexdigest() == loaded.about["sha256"]
    assert loaded.size_bytes == len(content)
    assert loaded.classes == CLASSES
    assert loaded.parameters == loaded.about["parameters"] == 5266
    # Multiply-accumulates: stem, two 8 -> 8, then 8 -> 16, 16 -> 16 and a shortcut on 16x16, and the classifier.
    assert loaded.macs == 1024 * (27 * 8 + 18 * 64) + 256 * (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16) + 160
    assert loaded.about.items() >= MADE_BY.items()
    assert Model.model_validate(loaded.about["model"]) == tiny_model()


def test_the_same_model_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        save(trained_net(), tmp_path / name)
    for file in ("model.safetensors", "model.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_the_memory_format_does_not_show_in_the_file(tmp_path: Path) -> None:
    save(trained_net(), tmp_path / "channels_last")
    save(trained_net().to(memory_format=torch.contiguous_format), tmp_path / "contiguous")
    assert load_model(tmp_path / "channels_last").md5 == load_model(tmp_path / "contiguous").md5


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_flipped_bit_is_refused(tmp_path: Path, place: int) -> None:
    weights = save(trained_net(), tmp_path) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[place] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors: SHA-256 \w{64}, accepted: \w{64} of .*model\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    weights = save(trained_net(), tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"model\.safetensors: SHA-256"):
        load_model(tmp_path)


def test_the_description_of_another_model_is_refused(tmp_path: Path) -> None:
    first, second = save(trained_net(0), tmp_path / "first"), save(trained_net(1), tmp_path / "second")
    shutil.copy(second / "model.json", first / "model.json")
    with pytest.raises(DataError, match=r"model\.safetensors: SHA-256"):
        load_model(first)


def test_weights_that_do_not_fit_the_description_are_refused(tmp_path: Path) -> None:
    save(trained_net(), tmp_path)
    edit_description(tmp_path, model=tiny_model(channels=(8, 24)).model_dump(mode="json"))
    with pytest.raises(DataError, match=r"does not hold the model of .*model\.json"):
        load_model(tmp_path)


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    save(trained_net(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    edit_description(tmp_path, sha256=hashlib.sha256(b"nothing of the kind").hexdigest())
    with pytest.raises(DataError, match=r"model\.safetensors: does not hold the model"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"sha256": "0", "model": {"layers": 2}, "classes": []}'])
def test_a_description_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    save(trained_net(), tmp_path)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(DataError, match=r"model\.json: not a model's description"):
        load_model(tmp_path)


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    (save(trained_net(), tmp_path) / missing).unlink()
    with pytest.raises(StorageError, match=rf"{missing}: cannot be read \(No such file"):
        load_model(tmp_path)
