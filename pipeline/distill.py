"""Stage distill: the student is trained with a teacher."""

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
    """Train the student on labels and its teacher's predictions."""
    from leanresnet.compute.device import choose_device
    from leanresnet.config.load import load_params
    from leanresnet.jobs.train_job import run_training
    from leanresnet.models.checkpoint import check_held_out, load_model
    from leanresnet.training.results import Outputs
    from leanresnet.training.tasks import distillation_task

    settings = load_params(params).distill
    chosen = choose_device(device)
    loaded = load_model(teacher, chosen)
    check_held_out(loaded, validation)
    task = distillation_task(settings, loaded, str(params))
    outputs = Outputs(model, results)
    run_training("student", settings.student, task, (train, validation), outputs, chosen, snapshot_seconds, extend)
