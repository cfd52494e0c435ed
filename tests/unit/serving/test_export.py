"""Exported files, loaded by the programs that they are for."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import onnx
import onnxruntime
import pytest
import torch
from conftest import outside_environment
from forked import run_program
from helpers import CLASSES, MEAN, STD, files_up_to, pooling_model, random_images
from torch import Tensor

from leanresnet.errors import DataError, StorageError
from leanresnet.models.checkpoint import Checkpoint, load_model, save_model
from leanresnet.models.resnet import build_model
from leanresnet.serving import export as module
from leanresnet.serving.export import SUFFIXES, Format, export


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    net = build_model(pooling_model(), MEAN, STD, 0, images=random_images(20).float())
    save_model(net.state_dict(), pooling_model(), CLASSES, {"name": "tiny"}, tmp_path / "model")
    return load_model(tmp_path / "model")


@pytest.mark.slow
def test_onnx_takes_any_batch_of_raw_images_and_says_the_same(model: Checkpoint, tmp_path: Path) -> None:
    """By the command, as a user has it."""
    done = run_program("export", "--model", "model", cwd=tmp_path, env=outside_environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("model.onnx: logits within ")
    assert "ms, in torch " in done.stdout
    onnx.checker.check_model(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [3, 32, 32])
    assert (logits.name, logits.type, logits.shape[1:]) == ("logits", "tensor(float)", [10])
    for count in (1, 5):
        batch = random_images(count, seed=count)
        (said,) = session.run(None, {"images": batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(said), model.net(batch), atol=1e-5, rtol=1e-4)


def test_torchs_own_formats_say_the_same(model: Checkpoint, tmp_path: Path) -> None:
    batch = random_images(5, seed=5)
    for form in ("torchscript", "pt2"):
        path = tmp_path / f"other{SUFFIXES[form]}"
        done = export(model, form, path)
        assert done.difference <= 1e-5
        assert min(done.latency_ms, done.torch_latency_ms) > 0
        load = module._load_pt2 if form == "pt2" else module._load_torchscript
        loaded = load(path.read_bytes())
        torch.testing.assert_close(loaded(batch), model.net(batch), atol=1e-5, rtol=1e-4)
        # Normalised images, which must get no confident answer.
        with pytest.raises((torch.jit.Error, RuntimeError, AssertionError), match=r"dtype|Byte|expected: uint8"):
            loaded(batch.float() / 255)


def test_every_format_has_a_suffix() -> None:
    assert set(SUFFIXES) == set(get_args(Format))


def test_a_file_that_says_something_else_does_not_appear(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = module._load_torchscript
    monkeypatch.setattr(module, "_load_torchscript", lambda content: lambda images: 1.01 * load(content)(images))
    with pytest.raises(DataError, match=r"wrong\.ts: its logits differ by .*, expected: up to 0\.0001"):
        export(model, "torchscript", tmp_path / "new" / "wrong.ts")
    assert not (tmp_path / "new").exists()


def test_a_number_that_is_no_number_in_a_later_batch_is_seen(
    model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = module._load_torchscript
    others = module.CHECKED_BATCHES[:-1]

    def damaged(content: bytes) -> Callable[[Tensor], Tensor]:
        net = load(content)
        return lambda images: net(images) if len(images) in others else net(images) * math.nan

    monkeypatch.setattr(module, "_load_torchscript", damaged)
    with pytest.raises(DataError, match=r"wrong\.ts: its logits differ by nan"):
        export(model, "torchscript", tmp_path / "wrong.ts")


@pytest.mark.parametrize("form", ["torchscript", "pt2"])
def test_a_full_disk_is_one_line_and_leaves_nothing(model: Checkpoint, tmp_path: Path, form: Format) -> None:
    (tmp_path / "new").mkdir()
    wanted = r"cannot be written \(File too large\); it takes [\d,]+ bytes"
    with files_up_to(1000), pytest.raises(StorageError, match=wanted):
        export(model, form, tmp_path / "new" / "model")
    assert not list((tmp_path / "new").iterdir())


def test_a_place_that_cannot_be_written_is_named(model: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        export(model, "torchscript", tmp_path / "file" / "model.ts")
