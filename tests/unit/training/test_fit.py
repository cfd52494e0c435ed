"""Every value of a recipe reaches the training, and every value of a task the loss."""

from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import preset_text
from helpers import CLASSES, put, synthetic_split, tiny_model, tiny_net, tiny_recipe
from torch import Tensor, nn

from leanresnet.compute.distributed import SINGLE_PROCESS
from leanresnet.config.schema import Recipe
from leanresnet.files import file_hashes
from leanresnet.jobs import train_job
from leanresnet.jobs.snapshots import SnapshotCallback
from leanresnet.models.checkpoint import save_model
from leanresnet.signals import stop_requests
from leanresnet.training.fit import Training
from leanresnet.training.losses import CrossEntropy, DistillationLoss
from leanresnet.training.tasks import TrainingTask
from pipeline.cli import cli

TRAIN = synthetic_split(60)
PLAIN = tiny_recipe(epochs=3, batch_size=20, precision="fp32")


def learned(recipe: Recipe) -> dict[str, Tensor]:
    task = TrainingTask("train@baseline", "params.yaml: train.baseline", CrossEntropy(0.0))
    training = Training(recipe, task, TRAIN, TRAIN, torch.device("cpu"), SINGLE_PROCESS)
    with stop_requests() as requested:
        snapshot_callback = SnapshotCallback(None, 3600, requested, SINGLE_PROCESS)
        return training.run(None, lambda metrics, step: None, snapshot_callback).best_weights


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return learned(PLAIN)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("max_grad_norm", 1e-3),
        ("ema_decay", 0.9),
        ("bn_momentum", 0.9),
        ("initialization", "dirac"),
        ("stochastic_depth", 0.9),
        ("optimizer.name", "adam"),
        ("schedule.name", "cosine"),
        ("augmentation.flip", 0.5),
        ("augmentation.crop_padding", 0),
        ("augmentation.padding_mode", "reflect"),
        ("augmentation.auto_augment", "rand_augment"),
        ("augmentation.cutout", 16),
        ("augmentation.mix", "cutmix"),
        ("progressive_resizing.epochs", 1),
        ("sam.rho", 0.5),
        ("normalization", {"mean": [0.1] * 3, "std": [0.1] * 3}),
    ],
)
def test_a_value_changes_what_is_learned(key: str, value: object, plain: dict[str, Tensor]) -> None:
    changed = Recipe.model_validate(put(PLAIN.model_dump(), {key: value}))
    assert changed != PLAIN
    other = learned(changed)
    assert not all(torch.equal(tensor, other[name]) for name, tensor in plain.items())


def test_the_same_recipe_learns_the_same(plain: dict[str, Tensor]) -> None:
    again = learned(PLAIN)
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.items())


def test_a_batch_is_tried_at_the_size_of_the_last_epoch_and_without_a_search_for_kernels() -> None:
    """An error of memory names it as one that fits, so it has to fit where images are largest."""
    seen: list[tuple[int, ...]] = []

    class Watched(CrossEntropy):
        def __call__(self, net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            seen.append((*images.shape, torch.backends.cudnn.benchmark))
            return super().__call__(net, images, labels)

    recipe = Recipe.model_validate(put(PLAIN.model_dump(), {"progressive_resizing.epochs": 1}))
    task = TrainingTask("train@baseline", "params.yaml: train.baseline", Watched(0.0))
    Training(recipe, task, TRAIN, TRAIN, torch.device("cpu"), SINGLE_PROCESS).try_step(4)
    assert seen == [(4, 3, 32, 32, False)]


def task_of(monkeypatch: pytest.MonkeyPatch, *command: str) -> TrainingTask:
    """What a command hands to the experiment, which does not run."""
    handed: list[TrainingTask] = []
    monkeypatch.setattr(train_job, "run_training", lambda name, recipe, task, *rest: handed.append(task))
    done = CliRunner().invoke(cli, [*command, "--device", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return handed[0]


def test_a_loss_is_what_the_params_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distill = {"alpha": 0.3, "temperature": 2.5, "beta": 6.0, "attention_transfer": 0.7, "teacher": "external"}
    changes = {
        "train.baseline.label_smoothing": 0.15,
        "distill.student.label_smoothing": 0.05,
        "distill.student.model": tiny_model().model_dump(mode="json"),
        **{f"distill.{key}": value for key, value in distill.items()},
    }
    params = put(yaml.safe_load(preset_text("demo")), changes)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "v").touch()
    provenance = {"name": "model", "validation_md5": file_hashes(tmp_path / "v")[0]}
    save_model(tiny_net().state_dict(), tiny_model(), CLASSES, provenance, tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    paths = ["--train", "t", "--validation", "v", "--model", "m", "--results", "r"]

    criterion = task_of(monkeypatch, "train", "baseline", *paths).criterion
    assert isinstance(criterion, CrossEntropy)
    assert criterion.label_smoothing == 0.15

    task = task_of(monkeypatch, "distill", "--teacher", "teacher", *paths)
    taught = task.criterion
    assert isinstance(taught, DistillationLoss)
    assert (taught.alpha, taught.temperature, taught.beta, taught.attention) == (0.3, 2.5, 6.0, 0.7)
    assert taught.hard.label_smoothing == 0.05
    assert {key: task.params[f"distill.{key}"] for key in distill} == distill | {"teacher": "model"}
