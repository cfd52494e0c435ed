"""The report on a trained model: the files that an evaluation writes to results/, and how they are read."""

from pathlib import Path

import torch
from pydantic import ConfigDict

from leanresnet.compute.device import exact_float32
from leanresnet.config.load import load_section
from leanresnet.config.schema import Evaluate, Finite, Positive, Rate, Section, Share
from leanresnet.data.splits import Split, load_splits
from leanresnet.errors import DataError
from leanresnet.evaluation import figures
from leanresnet.evaluation.predictions import Predictions, measure_speed, predict
from leanresnet.files import save_csv, save_figure, save_json
from leanresnet.models.checkpoint import check_held_out, load_model, load_origin
from leanresnet.models.resnet import ResNet
from leanresnet.training.loader import EvalBatches
from leanresnet.training.results import Outputs
from leanresnet.training.validation import Metrics


class Measured(Section):
    """The measures on one split."""

    model_config = ConfigDict(extra="ignore")

    loss: Finite
    accuracy: Share
    teacher_agreement: Share
    teacher_gap: Finite


class Tested(Measured):
    """The measures on the test split."""

    calibration_error: Share
    accuracy_by_class: dict[str, Share]


class Report(Section):
    """The content of test.json."""

    model_config = ConfigDict(extra="ignore")

    parameters: Positive
    macs: Positive
    size_bytes: Positive
    val: Measured
    test: Tested


class Speed(Section):
    """The content of speed.json: milliseconds for one image, and images per second for a batch."""

    latency_ms: Rate
    throughput: Rate


def load_report(results: Path) -> Report:
    """Return the report in a model's folder of results.

    Raises:
        StorageError: if test.json cannot be read or is not JSON.
        DataError: if it does not hold a report.
    """
    return load_section(results / "test.json", Report, "an evaluation's report")


def load_speed(results: Path) -> Speed:
    """Return the measured speed in a model's folder of results; it raises the errors of `load_report`."""
    return load_section(results / "speed.json", Speed, "an evaluation's speed")


def write_report(
    settings: Evaluate, outputs: Outputs, teacher: Path, validation: Path, test: Path, device: torch.device
) -> None:
    """Write test.json, speed.json, confusion.csv and two pictures to the model's results.

    Accuracy is measured in float32. Timings depend on the machine, so they have a file of their own, speed.json. The
    bytes of test.json are the same whenever the same build measures the same weights.

    Args:
        settings: the section of params.yaml.
        outputs: the folders of the model and of its results.
        teacher: the folder of the model to compare with.
        validation, test: the files of the splits.
        device: where the networks run.

    Raises:
        DataError: if the splits belong to different data sets, or the model or the teacher held out other images or
            has predictions that are not finite.
    """
    model, teacher_model = load_model(outputs.model, device), load_model(teacher, device)
    for each in (model, teacher_model):
        check_held_out(each, validation)
    held_out, split = load_splits(validation, test)
    batches = [EvalBatches(each, settings.batch_size, device) for each in (held_out, split)]
    if isinstance(model.net, ResNet):
        # The model's MLflow run is made from its origin, so a mistake there is reported before the measurements.
        load_origin(outputs.model)
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
        "parameters": model.parameters,
        "macs": model.macs,
        "size_bytes": model.size_bytes,
        "val": on_validation,
        "test": {
            **on_test,
            "calibration_error": predictions.calibration_error(settings.calibration_bins),
            "accuracy_by_class": _by_class(predictions, split),
        },
    }
    results = outputs.results
    save_json(report, results / "test.json")
    save_json(speed, results / "speed.json")
    rows = [[split.classes[t], split.classes[p]] for t, p in zip(split.labels, predictions.chosen, strict=True)]
    save_csv(["true", "predicted"], rows, results / "confusion.csv")
    save_figure(figures.confusion_matrix(predictions.confusion(), split.classes), results / "confusion.png")
    save_figure(figures.mistakes(split, predictions, settings.mistakes), results / "mistakes.png")


def report_files(outputs: Outputs) -> list[Path]:
    """Return the paths of the files that `write_report` writes."""
    names = ("test.json", "speed.json", "confusion.csv", "confusion.png", "mistakes.png")
    return [outputs.results / name for name in names]


def _by_class(predictions: Predictions, split: Split) -> Metrics:
    counts = predictions.confusion()
    shares = counts.diagonal().double() / counts.sum(1).clamp(min=1)
    return dict(zip(split.classes, shares.tolist(), strict=True))
