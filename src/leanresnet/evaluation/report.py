"""The report on a trained model: the files that an evaluation writes to results/, and how they are read."""

import csv
from collections import Counter
from pathlib import Path

import torch
from pydantic import ConfigDict, Field, FiniteFloat, PositiveInt

from leanresnet.compute.device import exact_float32
from leanresnet.config.load import load_section
from leanresnet.config.schema import Evaluate, PositiveFloat, Section, Share
from leanresnet.data.splits import load_splits
from leanresnet.errors import DataError
from leanresnet.evaluation import figures
from leanresnet.evaluation.predictions import measure_speed, predict
from leanresnet.files import not_read, save_csv, save_figure, save_json
from leanresnet.models.checkpoint import Checkpoint, check_held_out, check_unseen, load_model, load_origin
from leanresnet.models.resnet import ResNet
from leanresnet.training.loader import EvalBatches
from leanresnet.training.results import Outputs, read_history
from leanresnet.training.validation import Metrics

# The files that `write_report` writes.
FILES = ("test.json", "speed.json", "confusion.csv", "confusion.png", "mistakes.png")
TEST, SPEED, PREDICTIONS, CONFUSION, MISTAKES = FILES


class Report(Section):
    """The content of test.json: the keys are the names of MLflow's metrics.

    `val/evaluated_...` is measured here in float32, as the test split is; `val/...` is what the training measured.
    """

    model_config = ConfigDict(extra="ignore")

    parameters: PositiveInt = Field(alias="model/parameters")
    macs: PositiveInt = Field(alias="model/macs")
    size_bytes: PositiveInt = Field(alias="model/size_bytes")
    validation_loss: FiniteFloat = Field(alias="val/evaluated_loss")
    validation_accuracy: Share = Field(alias="val/evaluated_accuracy")
    validation_teacher_agreement: Share = Field(alias="val/evaluated_teacher_agreement")
    validation_teacher_gap: FiniteFloat = Field(alias="val/evaluated_teacher_gap")
    test_loss: FiniteFloat = Field(alias="test/loss")
    test_accuracy: Share = Field(alias="test/accuracy")
    test_teacher_agreement: Share = Field(alias="test/teacher_agreement")
    test_teacher_gap: FiniteFloat = Field(alias="test/teacher_gap")
    calibration_error: Share = Field(alias="test/calibration_error")


class Speed(Section):
    """The content of speed.json: milliseconds for one image, and images per second for a batch."""

    latency_ms: PositiveFloat = Field(alias="speed/latency_ms")
    throughput: PositiveFloat = Field(alias="speed/throughput")


def load_report(results: Path) -> Report:
    """Return the report in a model's folder of results.

    Raises:
        StorageError: if test.json cannot be read or is not JSON.
        DataError: if it does not hold a report.
    """
    return load_section(results / TEST, Report, "an evaluation's report")


def load_speed(results: Path) -> Speed:
    """Return the measured speed in a model's folder of results; the errors are those of `load_report`."""
    return load_section(results / SPEED, Speed, "an evaluation's speed")


def write_report(
    settings: Evaluate, outputs: Outputs, teacher: Path, validation: Path, test: Path, device: torch.device
) -> Checkpoint:
    """Write test.json, speed.json, confusion.csv and two pictures to the model's results.

    Accuracy is measured in float32. Timings depend on the machine, so they have a file of their own, speed.json. The
    bytes of test.json are the same whenever the same build measures the same weights.

    Args:
        settings: the section of params.yaml.
        outputs: the folders of the model and of its results.
        teacher: the folder of the model to compare with.
        validation, test: the files of the splits.
        device: where the networks run.

    Returns:
        The model, as it was loaded from its folder.

    Raises:
        DataError: if the splits belong to different data sets, or the model or the teacher held out other images, has
            used those of the test split, or has predictions that are not finite.
    """
    model, teacher_model = load_model(outputs.model, device), load_model(teacher, device)
    for each in (model, teacher_model):
        check_held_out(each, validation)
        check_unseen(each, test)
    held_out, split = load_splits(validation, test)
    batches = [EvalBatches(each, settings.batch_size, device) for each in (held_out, split)]
    if isinstance(model.net, ResNet):
        # The model's MLflow run is made from them, so a mistake there is reported before the measurements.
        load_origin(outputs.model)
        read_history(outputs.history)
    images = split.images[: settings.batch_size].to(device).contiguous(memory_format=torch.channels_last)
    with exact_float32():
        own = [predict(model.net, each) for each in batches]
        is_own_teacher = teacher_model.sha256 == model.sha256
        taught = own if is_own_teacher else [predict(teacher_model.net, each) for each in batches]
        for folder, predicted in ((outputs.model, own), (teacher, taught)):
            if not all(each.probabilities.isfinite().all() for each in predicted):
                raise DataError(f"{folder}: predictions that are not finite, expected: a model that did not diverge")
        speed = measure_speed(model.net, images, settings.timing_repeats)
    on_validation, on_test = (student.metrics(other) for student, other in zip(own, taught, strict=True))
    predictions = own[1]
    report = {
        "model/parameters": model.parameters,
        "model/macs": model.macs,
        "model/size_bytes": model.size_bytes,
        **{f"val/evaluated_{name}": value for name, value in on_validation.items()},
        **{f"test/{name}": value for name, value in on_test.items()},
        "test/calibration_error": predictions.calibration_error(settings.calibration_bins),
    }
    results = outputs.results
    save_json(report, results / TEST)
    save_json({f"speed/{name}": value for name, value in speed.items()}, results / SPEED)
    rows = [[split.classes[t], split.classes[p]] for t, p in zip(split.labels, predictions.chosen, strict=True)]
    save_csv(["true", "predicted"], rows, results / PREDICTIONS)
    matrix = figures.confusion_matrix(results.name, predictions.confusion(), split.classes)
    save_figure(matrix, results / CONFUSION)
    save_figure(figures.mistakes(results.name, split, predictions, settings.mistakes), results / MISTAKES)
    return model


def report_files(outputs: Outputs) -> list[Path]:
    """Return the paths of the files that `write_report` writes."""
    return [outputs.results / name for name in FILES]


def read_predictions(path: Path) -> list[tuple[str, str]]:
    """Return (true class, predicted class) of each test image by name, from a confusion.csv.

    Raises:
        StorageError: if the file cannot be read.
        DataError: if it is not a table of true and predicted classes.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [(row["true"], row["predicted"]) for row in csv.DictReader(file, restval="")]
    except OSError as error:
        raise not_read(path, error) from error
    except (KeyError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a table of predictions, expected: the columns true and predicted") from error


def accuracy_by_class(results: Path) -> Metrics:
    """Return the share of the test images of each class that were predicted right; errors: `read_predictions`."""
    pairs = read_predictions(results / PREDICTIONS)
    images = Counter(true for true, _ in pairs)
    right = Counter(true for true, predicted in pairs if true == predicted)
    return {name: right[name] / count for name, count in images.items()}
