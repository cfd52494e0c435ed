"""Stage distill: the student, taught by a trained model."""

from pathlib import Path

import click

from pipeline.nproc import nproc_option
from pipeline.options import device_option, extend_option, params_option, path_option, snapshot_option


@click.command()
@params_option
@path_option("--teacher", "Folder of the teacher's model.")
@path_option("--train", "Training split.")
@path_option("--validation", "Validation split.")
@path_option("--model", "Folder for the model.")
@path_option("--results", "Folder for the history and the summary.")
@device_option
@nproc_option
@snapshot_option
@extend_option
def distill(
    params: Path,
    teacher: Path,
    train: Path,
    validation: Path,
    model: Path,
    results: Path,
    device: str,
    snapshot_seconds: float,
    extend: bool,
) -> None:
    """Train the student on its labels and on its teacher's answers."""
    from leanresnet.checkpoint import check_held_out, load_model
    from leanresnet.config import check_teacher
    from leanresnet.device import choose_device
    from leanresnet.errors import ConfigError
    from leanresnet.evaluation import Versus
    from leanresnet.experiment import run_experiment
    from leanresnet.losses import DistillationLoss
    from leanresnet.models.resnet import ResNet
    from leanresnet.outputs import Outputs
    from leanresnet.params import load_params
    from leanresnet.training import Lesson

    settings = load_params(params).distill
    chosen = choose_device(device)
    master = load_model(teacher, chosen)
    check_held_out(master, validation)
    # The other teachers are in the params, which load_params has checked.
    try:
        if isinstance(master.net, ResNet):
            check_teacher(f"{params}: distill", settings, master.net.model, "previous model")
        elif settings.attention:
            raise ConfigError(f"{params}: distill.attention = {settings.attention} with an ensemble, accepted: 0")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    lesson = Lesson(
        stage="distill",
        key=f"{params}: distill.student",
        criterion=DistillationLoss(
            master.net,
            settings.alpha,
            settings.temperature,
            settings.beta,
            settings.student.label_smoothing,
            settings.attention,
        ),
        measures=Versus(master.net).measures(),
        params={
            "distill.teacher": master.about["name"],
            "distill.alpha": settings.alpha,
            "distill.temperature": settings.temperature,
            "distill.beta": "none" if settings.beta is None else settings.beta,
            "distill.attention": settings.attention,
        },
        teacher_sha256=master.sha256,
    )
    outputs = Outputs(model, results)
    run_experiment("student", settings.student, lesson, (train, validation), outputs, chosen, snapshot_seconds, extend)
