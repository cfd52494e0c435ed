"""Stage evaluate: the only one that sees the test split."""

from pathlib import Path

import click

from pipeline.options import device_option, params_option, path_option


@click.command()
@params_option
@path_option("--model", "Folder of the model.")
@path_option("--teacher", "Folder of the teacher's model, to compare with.")
@path_option("--validation", "Validation split.")
@path_option("--test", "Test split.")
@path_option("--results", "Folder with the training's history, for the report.")
@device_option
def evaluate(
    params: Path, model: Path, teacher: Path, validation: Path, test: Path, results: Path, device: str
) -> None:
    """Measure a trained model on the test split, and add that to its MLflow run."""
    from leanresnet.assessment import assess
    from leanresnet.device import choose_device
    from leanresnet.outputs import Outputs
    from leanresnet.params import load_params

    settings = load_params(params).evaluate
    assess(settings, Outputs(model, results), teacher, validation, test, choose_device(device))
