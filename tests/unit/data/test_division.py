"""The division of a data set: each class is trained on, whatever the numbers."""

from pathlib import Path

import pytest
import torch
from helpers import random_images

from leanresnet.config.schema import SplitSettings
from leanresnet.data import division
from leanresnet.data.division import divide
from leanresnet.data.preview import samples
from leanresnet.data.splits import Split, hold_out, load_split
from leanresnet.errors import DataError


def unequal(*counts: int) -> Split:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Split(random_images(len(labels)), labels, tuple("abcdefghij"[: len(counts)]), "folder")


def divided(training: Split, settings: SplitSettings, out: Path, monkeypatch: pytest.MonkeyPatch) -> Split:
    monkeypatch.setattr(division, "read_source", lambda source: (training, training))
    divide(settings, Path("source"), out, out)
    return load_split(out / "train.safetensors")


def test_each_file_has_its_part_which_the_seed_determines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, test = unequal(60, 60), unequal(7, 5)
    monkeypatch.setattr(division, "read_source", lambda source: (whole, test))
    drawn: list[str] = []
    monkeypatch.setattr(division, "samples", lambda split: drawn.append(split.digest()) or samples(split))
    found = {}
    for seed in (0, 3):
        divide(SplitSettings(validation=20, training=40, seed=seed), Path("source"), tmp_path, tmp_path)
        train, validation, held = (
            load_split(tmp_path / f"{name}.safetensors") for name in ("train", "validation", "test")
        )
        assert (len(train), len(validation), held.digest()) == (40, 20, test.digest())
        rest, expected = hold_out(whole, 20, seed)
        assert validation.digest() == expected.digest()
        assert train.digest() == hold_out(rest, 40, seed)[1].digest()
        found[seed] = (train.digest(), validation.digest())
        assert drawn[-1] == train.digest()
    assert not set(found[0]) & set(found[3])


def test_a_digest_depends_on_the_labels_too() -> None:
    split = unequal(3, 2)
    assert Split(split.images, split.labels.flip(0), split.classes, split.dataset).digest() != split.digest()


def test_a_class_without_training_images_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = SplitSettings(validation=20, training=40, seed=0)
    with pytest.raises(DataError, match=r"none of class 'a' is left, expected: a larger split\.training"):
        divided(unequal(5, 800), few, tmp_path, monkeypatch)
    assert not (tmp_path / "train.safetensors").exists()


def test_a_class_without_validation_images_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = divided(unequal(5, 800), SplitSettings(validation=20, training=None, seed=0), tmp_path, monkeypatch)
    assert train.counts() == {"a": 5, "b": 780}
    assert capsys.readouterr().err == "warning: split.validation = 20: no image of class a\n"
