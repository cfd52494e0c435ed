"""The logging of a stage's outputs to the MLflow run of the model that they belong to."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field, PositiveInt

from leanresnet.compute.device import describe
from leanresnet.config.load import load_section
from leanresnet.config.schema import Section, Share
from leanresnet.evaluation.report import accuracy_by_class, load_report, load_speed, report_files
from leanresnet.files import file_hashes
from leanresnet.models import checkpoint
from leanresnet.models.checkpoint import Checkpoint
from leanresnet.models.resnet import ResNet
from leanresnet.tracking import run as reporting
from leanresnet.tracking.events import CHECKPOINT, DVC_WEIGHTS_TAG, RESULTS, WEIGHTS_TAG
from leanresnet.tracking.run import Run
from leanresnet.training.results import Outputs, read_history


class Best(Section):
    """The keys of train.json that are logged."""

    model_config = ConfigDict(extra="ignore")

    best_epoch: PositiveInt
    accuracy: Share = Field(alias="val/accuracy")


@contextmanager
def run_for_outputs(model: Checkpoint, outputs: Outputs) -> Iterator[Run]:
    """Open the run of the training that wrote `outputs`, with the loaded `model`, to log more to it.

    If MLflow has no such run, because DVC restored the outputs from its cache, the run is created from the outputs.
    """
    origin = checkpoint.load_origin(outputs.model)
    with reporting.add_to_run(*run_metadata(origin.model_dump()), (origin.name, model.sha256)) as run:
        with run.only_if_new():
            unknown = dict.fromkeys(("git.commit", "git.dirty", "device", "torch"), "unknown")
            run.set_tags({"leanresnet.recorded": "from outputs", **unknown})
            run.log_history(read_history(outputs.history))
            log_training(run, model, outputs)
            run.end("FINISHED")
        yield run


def run_metadata(provenance: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return the name, the params and the tags of the run of a model with this provenance.

    In an experiment of DVC, the run has the name of the experiment and of the model, because the runs of a question
    often have the same optimizer and number of epochs.
    """
    params, experiment = provenance["params"], os.environ.get("DVC_EXP_NAME")
    recipe = f"{provenance['name']}-{params['optimizer.name']}-e{params['epochs']}"
    name = f"{experiment}-{provenance['name']}" if experiment else recipe
    tags = {
        "model": str(provenance["name"]),
        "dvc.stage": str(provenance["stage"]),
        "dvc.train_md5": str(provenance["train_md5"]),
        "dvc.validation_md5": str(provenance["validation_md5"]),
        "dataset": str(provenance["dataset"]),
        "seed": str(params["seed"]),
    }
    if provenance["teacher_sha256"]:
        tags["teacher.sha256"] = str(provenance["teacher_sha256"])
    return name, params, tags


def log_training(
    run: Run, model: Checkpoint, outputs: Outputs, classes: Mapping[str, Mapping[str, int]] | None = None
) -> None:
    """Log a finished training from its outputs, with the loaded `model` among them.

    Args:
        classes: number of images of each class in the splits `train` and `validation`; None if they are not at hand.
    """
    about, summary = model.about, load_section(outputs.summary, Best, "a training's summary")
    run.set_tags({WEIGHTS_TAG: model.sha256, DVC_WEIGHTS_TAG: model.md5})
    run.log_metrics(
        {
            "model/parameters": model.parameters,
            "model/macs": model.macs,
            "best_epoch": summary.best_epoch,
        }
    )
    run.log_metrics({"val/best_accuracy": summary.accuracy}, summary.best_epoch)
    for split, use in (("train", "training"), ("validation", "validation")):
        run.log_dataset(*_data(about["dataset"], split, about[f"{split}_md5"]), use, (classes or {}).get(split))
    for path in (outputs.model / checkpoint.WEIGHTS, outputs.model / checkpoint.DESCRIPTION):
        run.log_artifact(path, CHECKPOINT)
    for path in (outputs.history, outputs.summary, outputs.curves):
        run.log_artifact(path, RESULTS)
    run.log_model(CHECKPOINT)
    teacher = about["teacher_sha256"]
    note = f"{model.parameters:,} parameters, {model.macs / 1e6:.1f} million MACs."
    run.log_note(note, (about["params"]["distill.teacher"], teacher) if teacher else None)


def log_evaluation(
    model: Checkpoint, outputs: Outputs, device: torch.device, test: Path, classes: Mapping[str, int]
) -> None:
    """Log the report of an evaluation of `model` on `device` to the run of its training.

    Nothing is logged for an ensemble, which has no run because it was not trained.

    Args:
        test: the file of the test split.
        classes: the number of its images of each class.
    """
    if isinstance(model.net, ResNet):
        with run_for_outputs(model, outputs) as run:
            data = _data(checkpoint.load_origin(outputs.model).dataset, "test", file_hashes(test)[0])
            run.log_dataset(*data, "test", classes)
            log_report(run, outputs, data)
            run.set_tags({"evaluate.device": describe(device)})


def log_report(run: Run, outputs: Outputs, test: tuple[str, str] | None = None) -> None:
    """Log what `evaluation.report.write_report` wrote; `test` is (name, digest) of the test split, if it is known.

    The names of the metrics are the keys of the files, and test/accuracy_of/cat and so on.
    """
    report, speed = load_report(outputs.results), load_speed(outputs.results)
    origin = checkpoint.load_origin(outputs.model)
    measured = report.model_dump(by_alias=True)
    for split, data in (("test", test), ("val", _data(origin.dataset, "validation", origin.validation_md5))):
        run.log_metrics({key: value for key, value in measured.items() if key.startswith(f"{split}/")}, dataset=data)
    run.log_metrics({**speed.model_dump(by_alias=True), "model/size_bytes": report.size_bytes})
    by_class = accuracy_by_class(outputs.results)
    run.log_metrics({f"test/accuracy_of/{name}": value for name, value in by_class.items()})
    for path in report_files(outputs):
        run.log_artifact(path, RESULTS)


def _data(dataset: str, split: str, md5: str) -> tuple[str, str]:
    """Return the name and the digest by which MLflow knows a split."""
    return f"{dataset}-{split}", md5
