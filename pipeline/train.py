"""Stage train: the baseline or the teacher is trained."""

from pathlib import Path

import click

from pipeline.nproc import nproc_option
from pipeline.options import device_option, extend_option, params_option, path_option, snapshot_option


@click.command()
@click.argument("name", type=click.Choice(["baseline", "teacher"]))
@params_option
@path_option("--train", "Training split.")
@path_option("--validation", "Validation split.")
@path_option("--model", "Folder for the model.")
@path_option("--results", "Folder for the history and the summary.")
@device_option
@nproc_option
@snapshot_option
@extend_option
def train(
    name: str,
    params: Path,
    train: Path,
    validation: Path,
    model: Path,
    results: Path,
    device: str,
    snapshot_seconds: float,
    extend: bool,
) -> None:
    """Train a model on the labels alone."""
    from leanresnet.compute.device import choose_device
    from leanresnet.config.load import load_params
    from leanresnet.jobs.train_job import run_training
    from leanresnet.training.results import Outputs
    from leanresnet.training.tasks import label_task

    recipe = getattr(load_params(params).train, name)
    task, outputs = label_task(name, recipe, str(params)), Outputs(model, results)
    run_training(name, recipe, task, (train, validation), outputs, choose_device(device), snapshot_seconds, extend)
