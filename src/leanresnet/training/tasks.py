"""The tasks of the stages that train: the loss, the measures on validation, and what is recorded with the model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanresnet.config.schema import Distill, Recipe, check_teacher, flatten
from leanresnet.data.splits import Split
from leanresnet.errors import ConfigError
from leanresnet.files import file_hashes
from leanresnet.models.checkpoint import Checkpoint
from leanresnet.models.ensemble import Ensemble
from leanresnet.models.resnet import ResNet
from leanresnet.training.loop import Criterion
from leanresnet.training.losses import CrossEntropy, DistillationLoss
from leanresnet.training.validation import MEASURES, Measure, TeacherComparison

# These values are recorded for models that were not distilled, so that tables of runs have no empty column.
NOT_DISTILLED: dict[str, str | float] = {
    "distill.teacher": "none",
    "distill.alpha": 0.0,
    "distill.temperature": 1.0,
    "distill.beta": "none",
    "distill.attention_transfer": 0.0,
}


@dataclass(frozen=True)
class TrainingTask:
    """What a stage adds to a recipe.

    Attributes:
        stage: name of the stage in dvc.yaml.
        key: file and key of the recipe for error messages, such as ``params.yaml: train.baseline``.
        criterion: the loss, see `training.loop.Criterion`.
        measures: what is measured on the validation images, by name.
        params: values besides the recipe that are recorded with the model.
        teacher_sha256: SHA-256 of the teacher's weights, or None.
    """

    stage: str
    key: str
    criterion: Criterion
    measures: dict[str, Measure] = field(default_factory=lambda: dict(MEASURES))
    params: dict[str, str | float] = field(default_factory=lambda: dict(NOT_DISTILLED))
    teacher_sha256: str | None = None


def label_task(name: str, recipe: Recipe, where: str) -> TrainingTask:
    """Return the task of training on the labels alone.

    Args:
        name: baseline or teacher.
        where: the params file, for error messages.
    """
    return TrainingTask(f"train@{name}", f"{where}: train.{name}", CrossEntropy(recipe.label_smoothing))


def distillation_task(settings: Distill, teacher: Checkpoint, where: str) -> TrainingTask:
    """Return the task of training the student on the labels and on the predictions of `teacher`.

    Args:
        where: the params file, for error messages.

    Raises:
        ConfigError: if the settings need feature maps that the teacher does not have.
    """
    # load_params has checked a teacher whose network the params name, but not a model from elsewhere.
    try:
        if settings.attention_transfer and isinstance(teacher.net, Ensemble):
            raise ConfigError(
                f"{where}: distill.attention_transfer = {settings.attention_transfer} with an ensemble, expected: 0"
            )
        for net in teacher.net.modules():
            if isinstance(net, ResNet):
                check_teacher(f"{where}: distill", settings, net.model, "an external model")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    own = {key: value for key, value in flatten(settings, "distill.").items() if not key.startswith("distill.student.")}
    return TrainingTask(
        stage="distill",
        key=f"{where}: distill.student",
        criterion=DistillationLoss(
            teacher.net,
            settings.alpha,
            settings.temperature,
            settings.beta,
            settings.student.label_smoothing,
            settings.attention_transfer,
        ),
        measures=TeacherComparison(teacher.net).measures(),
        params={**own, "distill.teacher": teacher.about["name"]},
        teacher_sha256=teacher.sha256,
    )


def describe_provenance(
    name: str, recipe: Recipe, task: TrainingTask, train: Split, data: tuple[Path, Path]
) -> dict[str, Any]:
    """Return everything besides the code that determines a model, for model.json.

    Args:
        train: the training split.
        data: the files of the training and of the validation split.
    """
    return {
        "name": name,
        "stage": task.stage,
        "params": flatten(recipe) | task.params,
        "dataset": train.dataset,
        "train_md5": file_hashes(data[0])[0],
        "validation_md5": file_hashes(data[1])[0],
        "teacher_sha256": task.teacher_sha256,
    }
