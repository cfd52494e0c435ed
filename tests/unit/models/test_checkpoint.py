"""A model on disk: what is read is what was written, or nothing is."""

import hashlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLASSES, random_images, tiny_model, tiny_net
from torch import Tensor

from leanresnet.config.schema import Model
from leanresnet.errors import DataError, StorageError
from leanresnet.models import checkpoint
from leanresnet.models.checkpoint import load_model, load_origin, save_model
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
    with pytest.raises(DataError, match=r"model\.safetensors: SHA-256 \w{64}, expected: \w{64} of .*model\.json"):
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


@pytest.mark.parametrize(
    "text", ["[]", "{}", "3", "null", '"text"', '{"sha256": "0", "model": {"layers": 2}, "classes": []}']
)
def test_a_description_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    save(trained_net(), tmp_path)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(DataError, match=r"model\.json: not a model's description \(.*\), expected: "):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"parameters": NaN}', "[Infinity]", "9" * 5000])
def test_a_description_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    save(trained_net(), tmp_path)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(StorageError, match=r"model\.json: not valid JSON"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sha256", None),
        ("sha256", "0" * 63),
        ("parameters", 5266.5),
        ("macs", "1"),
        ("classes", ["a"]),
        ("classes", ["a"] * 10),
        ("classes", [*"abcdefghi", 9]),
        ("classes", "abcdefghij"),
        ("name", {}),
        ("model", None),
        ("model", []),
        ("members", []),
        ("members", {"0": {}}),
        ("model.channels.0", 2**70),
        ("model.channels.0", 100_000),
        ("model.channels.0", "8"),
        ("model.blocks.0", 2**70),
        ("model.blocks.0", 10**9),
        ("model.layers", 2**70),
        ("model.pool", 2**70),
        ("model.kernels.0", -1),
        ("model.squeeze_excite", 2**70),
        ("model.activation", "eval"),
        ("model.more", 1),
    ],
)
def test_a_description_is_held_to_the_types_of_params(tmp_path: Path, key: str, value: object) -> None:
    about = json.loads((save(trained_net(), tmp_path) / "model.json").read_text())
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    place = about
    for part in path:
        place = place[part]
    place[last] = value
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"model\.json: not a model's description \(.*\), expected: ") as caught:
        load_model(tmp_path)
    assert len(str(caught.value)) < 500


def test_a_description_of_a_larger_model_builds_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(trained_net(), tmp_path)
    edit_description(tmp_path, model=tiny_model(channels=(2**14, 2**14)).model_dump(mode="json"))
    monkeypatch.setattr(checkpoint, "build_model", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(DataError, match=r"does not hold the model of .*model\.json \(.* bytes for [\d,]+ parameters\)"):
        load_model(tmp_path)


def poisoned(name: str, value: object) -> dict[str, Tensor]:
    """A tiny model's weights, of which one tensor is another, or has another number in it, or is gone."""
    weights = dict(trained_net().state_dict())
    if isinstance(value, float):
        weights[name] = weights[name].clone()
        weights[name].view(-1)[-1] = value
    elif isinstance(value, torch.dtype):
        weights[name] = weights[name].to(value)
    elif value is None:
        del weights[name]
    else:
        weights[name] = torch.zeros(2)
    return weights


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("classifier.weight", math.nan, "classifier.weight has numbers that are NaN or infinite"),
        ("classifier.bias", math.inf, "classifier.bias has numbers that are NaN or infinite"),
        ("std", -math.inf, "std has numbers that are NaN or infinite"),
        ("stem.1.running_var", math.nan, "stem.1.running_var has numbers that are NaN or infinite"),
        ("classifier.weight", torch.int8, "classifier.weight is int8 [10, 16] and not float32 [10, 16]"),
        ("classifier.weight", torch.float64, "classifier.weight is float64 [10, 16] and not float32 [10, 16]"),
        ("classifier.bias", "shape", "classifier.bias is float32 [2] and not float32 [10]"),
        ("more", "unknown", "more is unknown"),
        ("mean", None, "mean is missing"),
    ],
)
def test_weights_are_finite_and_of_the_networks_types(tmp_path: Path, name: str, value: object, says: str) -> None:
    save_model(poisoned(name, value), tiny_model(), CLASSES, MADE_BY, tmp_path)
    with pytest.raises(DataError, match=rf"does not hold the model of .*model\.json \({re.escape(says)}\)"):
        load_model(tmp_path)


ORIGIN = {
    "name": "student",
    "stage": "distill",
    "params": {"optimizer.name": "sgd", "epochs": 3, "seed": 0, "distill.teacher": "teacher"},
    "dataset": "digits",
    "train_md5": "0" * 32,
    "validation_md5": "1" * 32,
    "teacher_sha256": "2" * 64,
}


def test_an_origin_is_read_where_it_is_whole(tmp_path: Path) -> None:
    save_model(trained_net().state_dict(), tiny_model(), CLASSES, ORIGIN, tmp_path)
    assert load_origin(tmp_path).model_dump() == ORIGIN


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": 1},
        {"dataset": None},
        {"train_md5": "0"},
        {"teacher_sha256": "0"},
        {"params": None},
        {"params": {}},
        {"params": {"epochs": [1]}},
        {"params": {"optimizer.name": "sgd", "epochs": 3, "seed": 0}},
    ],
)
def test_an_origin_of_other_content_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    save_model(trained_net().state_dict(), tiny_model(), CLASSES, {**ORIGIN, **changes}, tmp_path)
    with pytest.raises(DataError, match=r"model\.json: not a model's description \("):
        load_origin(tmp_path)


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    (save(trained_net(), tmp_path) / missing).unlink()
    with pytest.raises(StorageError, match=rf"{missing}: cannot be read \(No such file"):
        load_model(tmp_path)
