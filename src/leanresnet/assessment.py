"""A trained model's report: written to results/, and added to the run that trained it."""

from pathlib import Path

import torch

from leanresnet import pictures
from leanresnet.checkpoint import check_held_out, load_model, load_origin
from leanresnet.config import Evaluate, Rate, Section
from leanresnet.data.batches import EvalBatches
from leanresnet.data.splits import Split, load_splits
from leanresnet.device import describe, exact_float32
from leanresnet.errors import DataError
from leanresnet.evaluation import Metrics
from leanresnet.files import load_section, save_csv, save_figure, save_json
from leanresnet.models.ensemble import Ensemble
from leanresnet.outputs import Outputs, read_history, run_of
from leanresnet.predictions import Predictions, measure_speed, predict
from leanresnet.reporting import Run
from leanresnet.summary import Report, load_report


class Speed(Section):
    """speed.json."""

    latency_ms: Rate
    throughput: Rate


def assess(
    settings: Evaluate, outputs: Outputs, teacher: Path, validation: Path, test: Path, device: torch.device
) -> None:
    """Write test.json, speed.json, confusion.csv and two pictures to the model's results.

    Accuracy is measured in float32. An ensemble's report stays there: its members have runs, it has none.

    Timings depend on the machine, so they stand in a file of their own: test.json is the
    same bytes wherever the same weights are measured by the same build.

    Raises:
        DataError: a split is of another data set than the other, the model or the teacher held out other images, or
            gives answers that are not finite.
    """
    model, master = load_model(outputs.model, device), load_model(teacher, device)
    for each in (model, master):
        check_held_out(each, validation)
    ensemble = isinstance(model.net, Ensemble)
    held_out, split = load_splits(validation, test)
    batches = [EvalBatches(each, settings.batch_size, device) for each in (held_out, split)]
    if not ensemble:
        # What its run is made of, before anything is measured.
        load_origin(outputs.model)
    images = split.images[: settings.batch_size].to(device).contiguous(memory_format=torch.channels_last)
    with exact_float32():
        said = [predict(model.net, each) for each in batches]
        # A model that is its own teacher has said it all.
        taught = said if master.sha256 == model.sha256 else [predict(master.net, each) for each in batches]
        for folder, answers in ((outputs.model, said), (teacher, taught)):
            if not all(each.probabilities.isfinite().all() for each in answers):
                raise DataError(f"{folder}: answers that are not finite, accepted: a model that did not diverge")
        speed = measure_speed(model.net, images, settings.timing_repeats)
    on_validation, on_test = (own.metrics(other) for own, other in zip(said, taught, strict=True))
    predictions = said[1]
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
    save_figure(pictures.confusion_matrix(predictions.confusion(), split.classes), results / "confusion.png")
    save_figure(pictures.mistakes(split, predictions, settings.mistakes), results / "mistakes.png")
    if ensemble:
        return
    with run_of(outputs) as run:
        log_assessment(run, outputs)
        run.set_tags({"evaluate.device": describe(device)})


def log_assessment(run: Run, outputs: Outputs) -> None:
    """What `assess` wrote to the model's results."""
    report = load_report(outputs.results)
    speed = load_section(outputs.results / "speed.json", Speed, "an evaluation's speed")
    run.log_metrics(_for_mlflow(report, speed), len(read_history(outputs.history)) + 1)
    for path in report_files(outputs):
        run.log_artifact(path, "results")


def report_files(outputs: Outputs) -> list[Path]:
    """What `assess` writes."""
    names = ("test.json", "speed.json", "confusion.csv", "confusion.png", "mistakes.png")
    return [outputs.results / name for name in names]


def _by_class(predictions: Predictions, split: Split) -> Metrics:
    counts = predictions.confusion()
    shares = counts.diagonal().double() / counts.sum(1).clamp(min=1)
    return dict(zip(split.classes, shares.tolist(), strict=True))


def _for_mlflow(report: Report, speed: Speed) -> Metrics:
    """Under names that MLflow groups: test/accuracy, test/accuracy_of/cat, and val/evaluated_accuracy.

    Training has its own val/accuracy, by epoch and in its own precision.
    """
    test = report.test.model_dump()
    by_class = test.pop("accuracy_by_class")
    return {
        **{f"test/{name}": value for name, value in test.items()},
        **{f"test/accuracy_of/{name}": value for name, value in by_class.items()},
        **{f"val/evaluated_{name}": value for name, value in report.val.model_dump().items()},
        **{f"speed/{name}": value for name, value in speed.model_dump().items()},
        "model/size_bytes": report.size_bytes,
    }
