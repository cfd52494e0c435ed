"""A trained model on disk: model.safetensors, and model.json that says all that is needed to use it.

An ensemble is one such model too, whose model.json has `members` instead of `model`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from leanresnet.config import Model
from leanresnet.errors import DataError
from leanresnet.files import file_hashes, load_json, save_json, save_safetensors
from leanresnet.models.budget import count_macs, count_parameters
from leanresnet.models.ensemble import Ensemble
from leanresnet.models.resnet import ResNet, build_model

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode with what is known about it.

    `folder` is where it lies; `md5` and `sha256` are of the weights file; `about` is all of model.json.
    """

    folder: Path
    net: ResNet | Ensemble
    about: dict[str, Any]
    classes: tuple[str, ...]
    parameters: int
    macs: int
    md5: str
    sha256: str
    size_bytes: int


def save_model(
    weights: dict[str, Tensor], model: Model, classes: tuple[str, ...], made_by: dict[str, Any], folder: Path
) -> None:
    """Write the two files, the description last.

    Args:
        weights: a state dict of `ResNet(model)`.
        made_by: recorded as it is: the recipe, the data's digests, the teacher.
    """
    save_safetensors({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    about = {
        "sha256": file_hashes(folder / WEIGHTS)[1],
        "parameters": count_parameters(model),
        "macs": count_macs(model),
        "classes": list(classes),
        "model": model.model_dump(mode="json"),
        **made_by,
    }
    save_json(about, folder / DESCRIPTION)


def save_ensemble(models: "Sequence[Checkpoint]", folder: Path) -> None:
    """Write models of the same data as one, which answers as `Ensemble` does.

    Raises:
        DataError: they did not hold out the same images, one is there twice, or is an ensemble itself.
    """
    held_out = models[0].about.get("validation_md5")
    for model in models:
        _check_held_out(model, held_out, models[0].folder / DESCRIPTION)
    if len({model.sha256 for model in models}) < len(models):
        raise DataError("a member is named twice, accepted: each once")
    nets = [model.net for model in models if isinstance(model.net, ResNet)]
    if len(nets) < len(models):
        raise DataError("a member is an ensemble, accepted: single models")
    weights = Ensemble(nets).state_dict()
    save_safetensors({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    members = [{key: model.about[key] for key in ("name", "sha256", "model", "train_md5")} for model in models]
    about = {
        "sha256": file_hashes(folder / WEIGHTS)[1],
        "parameters": sum(model.parameters for model in models),
        "macs": sum(model.macs for model in models),
        "classes": list(models[0].classes),
        "members": members,
        "name": "ensemble",
        "dataset": models[0].about["dataset"],
        "validation_md5": held_out,
    }
    save_json(about, folder / DESCRIPTION)


def check_held_out(model: Checkpoint, validation: Path) -> None:
    """Refuse a model whose training may have seen images that are to judge it, or that it is to teach for.

    Training and validation split are two parts of a data set's training images, and the file of a split also
    holds the data set's name and the classes. So a model that held out this very file learned from other images of
    the same data set, and from none of its test images; how many of the others it learned from does not matter.

    Raises:
        DataError: its training held out another file.
    """
    _check_held_out(model, file_hashes(validation)[0], validation)


def _check_held_out(model: Checkpoint, accepted: str | None, of: Path) -> None:
    found = model.about.get("validation_md5")
    if found is None or found != accepted:
        wrong = f"validation_md5 = {found}, so it may have learned from images that are held out here"
        remedy = "train it again on these splits, or set `split` to what it was trained with"
        raise DataError(f"{model.folder / DESCRIPTION}: {wrong}, accepted: {accepted} of {of}; {remedy}")


def load_model(folder: Path, device: torch.device | None = None) -> Checkpoint:
    """Read and verify what `save_model` wrote.

    Raises:
        StorageError: a file cannot be read.
        DataError: the weights are damaged or belong to another description.
    """
    about = load_json(folder / DESCRIPTION)
    md5, sha256 = file_hashes(folder / WEIGHTS)
    try:
        shapes = [each["model"] for each in about["members"]] if "members" in about else [about["model"]]
        models = [Model.model_validate(shape) for shape in shapes]
        expected, classes = about["sha256"], tuple(about["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / DESCRIPTION}: not a model's description, accepted: a file that this version's training wrote"
        ) from error
    if sha256 != expected:
        raise DataError(f"{folder / WEIGHTS}: SHA-256 {sha256}, accepted: {expected} of {folder / DESCRIPTION}")
    nets = [build_model(model, mean=[0.0] * 3, std=[1.0] * 3, seed=0) for model in models]
    net = Ensemble(nets) if "members" in about else nets[0]
    try:
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"{folder / WEIGHTS}: does not hold the model of {folder / DESCRIPTION}") from error
    size = (folder / WEIGHTS).stat().st_size
    parameters, macs = (sum(count(model) for model in models) for count in (count_parameters, count_macs))
    return Checkpoint(folder, net.to(device).eval(), about, classes, parameters, macs, md5, sha256, size)
