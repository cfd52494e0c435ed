"""What the stages that train measure and record."""

from pathlib import Path

from helpers import random_images, synthetic_split, tiny_model, tiny_net, tiny_recipe
from imports import ROOT

from leanresnet.config.schema import flatten
from leanresnet.files import file_hashes
from leanresnet.models import checkpoint
from leanresnet.scaffold.presets import load_preset
from leanresnet.training.tasks import NOT_DISTILLED, describe_provenance, distillation_task, label_task
from leanresnet.training.validation import MEASURES


def test_a_student_is_measured_against_its_teacher_and_records_it(tmp_path: Path) -> None:
    origin = {"name": "teacher", "dataset": "synthetic", "train_md5": "0" * 32, "validation_md5": "1" * 32}
    checkpoint.save_model(tiny_net(1).state_dict(), tiny_model(), synthetic_split().classes, origin, tmp_path)
    teacher = checkpoint.load_model(tmp_path)
    settings = load_preset("demo", ROOT / "presets").params.distill
    task = distillation_task(settings, teacher, "params.yaml")
    assert (task.stage, task.key, task.teacher_sha256) == ("distill", "params.yaml: distill.student", teacher.sha256)
    assert task.params.keys() == NOT_DISTILLED.keys()
    assert (task.params["distill.teacher"], task.params["distill.alpha"]) == ("teacher", settings.alpha)
    images, labels = random_images(8), synthetic_split(8).labels
    logits = teacher.net(images)
    agreement = task.measures["teacher_agreement"](images, logits, labels)
    assert agreement.tolist() == [1.0] * 8
    assert set(task.measures) > set(MEASURES)


def test_the_provenance_has_everything_that_determines_a_model(tmp_path: Path) -> None:
    recipe, split = tiny_recipe(seed=5), synthetic_split(20)
    data = (tmp_path / "train", tmp_path / "validation")
    for path in data:
        path.write_text(path.name)
    task = label_task("teacher", recipe, "params.yaml")
    assert describe_provenance("teacher", recipe, task, split, data) == {
        "name": "teacher",
        "stage": "train@teacher",
        "params": {**flatten(recipe), **NOT_DISTILLED},
        "dataset": "synthetic",
        "train_md5": file_hashes(data[0])[0],
        "validation_md5": file_hashes(data[1])[0],
        "teacher_sha256": None,
    }
