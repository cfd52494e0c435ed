"""Stage evaluate: the only stage that reads the test split."""

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
    """Measure a trained model on the test split.

    The results are added to its MLflow run.
    """
    from leanresnet.compute.device import choose_device
    from leanresnet.config.load import load_params
    from leanresnet.data.splits import load_split
    from leanresnet.evaluation.report import load_report, write_report
    from leanresnet.tracking.log_outputs import log_evaluation
    from leanresnet.training.results import Outputs

    outputs, chosen = Outputs(model, results), choose_device(device)
    evaluated = write_report(load_params(params).evaluate, outputs, teacher, validation, test, chosen)
    report = load_report(results)
    accuracies = f"validation {report.validation_accuracy:.2%}, test {report.test_accuracy:.2%}"
    click.echo(f"{model}: {accuracies}; the measurements and pictures are in {results}", err=True)
    log_evaluation(evaluated, outputs, chosen, test, load_split(test).counts())
