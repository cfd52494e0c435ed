"""Other numbers of classes than ten, from the images to the predictions."""

from pathlib import Path

import archives
import pytest
import torch
from click.testing import CliRunner
from conftest import preset_text
from databases import place_database, runs_of
from helpers import put
from PIL import Image

from leanresnet.config.documents import read_yaml, write_yaml
from leanresnet.data.folder import digest, list_files
from leanresnet.files import file_hashes
from leanresnet.models.checkpoint import load_model
from pipeline.cli import cli

NAMES = ("big cats", "éclair", "猫")
TINY = {
    "model.channels": [8, 8, 16],
    "epochs": 1,
    "schedule.warmup_epochs": 0.5,
    "augmentation.mix": "cutmix",
    "batch_size": 8,
    "max_parameters": 12_000,
}
DATA = "--train data/train.safetensors --validation data/validation.safetensors"


def write_images(folder: Path) -> Path:
    """Ten images of each class, whose blue is the same everywhere."""
    for number, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for image in range(10):
            Image.new("RGB", (40, 30 + image), (90 * number, 20 * image, 60)).save(folder / name / f"{image}.png")
    return folder


def write_params(folder: Path, dataset: str, sha256: str, **changes: object) -> None:
    values = read_yaml(preset_text("demo"))
    values = put(values, {"download.dataset": dataset, "download.sha256": sha256, **changes})
    for place in ("train.baseline", "train.teacher", "distill.student"):
        values = put(values, {f"{place}.{key}": value for key, value in TINY.items()})
    (folder / "params.yaml").write_text(write_yaml(values))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "space").mkdir()
    place_database(tmp_path / "space")
    monkeypatch.chdir(tmp_path / "space")
    return tmp_path / "space"


def program(line: str) -> str:
    done = CliRunner().invoke(cli, line.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def counts() -> list[str]:
    return program("check").splitlines()[:3]


def run_pipeline(names: tuple[str, ...]) -> None:
    program("download --out data/source")
    program("split --source data/source --out data --report results/split")
    program(f"train teacher {DATA} --model models/teacher --results results/teacher --device cpu")
    program(f"distill --teacher models/teacher {DATA} --model models/student --results results/student --device cpu")
    evaluated = "--validation data/validation.safetensors --test data/test.safetensors --results results/student"
    program(f"evaluate --model models/student --teacher models/teacher {evaluated} --device cpu")
    student = load_model(Path("models/student"))
    assert student.classes == names
    assert student.net(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, len(names))
    assert f"student   {student.parameters:>12,} parameters" in program("check")
    assert student.parameters == sum(each.numel() for each in student.net.parameters())


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")
def test_a_folder_goes_through_the_whole_pipeline(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(workspace.parent / "my images")
    monkeypatch.setenv("LEANRESNET_FOLDER", str(images))
    write_params(workspace, "folder", digest(list_files(images)), **{"split.validation": 4})
    before = counts()
    run_pipeline(NAMES)
    assert counts() == before
    student = next(run for run in runs_of(workspace) if run.data.tags["model"] == "student")
    assert {f"test/accuracy_of/{name}" for name in NAMES} <= student.data.metrics.keys()
    said = CliRunner().invoke(cli, ["predict", str(images / "猫" / "1.png"), "--device", "cpu"]).output
    assert all(name in said for name in NAMES)
    monkeypatch.delenv("LEANRESNET_FOLDER")
    assert counts() == before


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")
def test_a_hundred_classes_go_through_the_whole_pipeline(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archives.write_cifar100(workspace.parent / "cifar-100-python.tar.gz", images=400)
    monkeypatch.setenv("LEANRESNET_CIFAR100", str(archive))
    md5, sha256 = file_hashes(archive)
    about = {"download.md5": md5, "download.size": archive.stat().st_size, "split.validation": 100}
    write_params(workspace, "cifar100", sha256, **about)
    run_pipeline(tuple(f"fine {number}" for number in range(100)))
