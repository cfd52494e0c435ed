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

    `md5` and `sha256` are of the weights file; `about` is all of model.json.
    """

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
        DataError: they were not trained on the same images, one is there twice, or is an ensemble itself.
    """
    for key in ("train_md5", "classes"):
        if len({str(model.about.get(key)) for model in models}) > 1:
            raise DataError(f"{key} differs between the members, accepted: models that were trained on the same images")
    if len({model.sha256 for model in models}) < len(models):
        raise DataError("a member is named twice, accepted: each once")
    nets = [model.net for model in models if isinstance(model.net, ResNet)]
    if len(nets) < len(models):
        raise DataError("a member is an ensemble, accepted: single models")
    weights = Ensemble(nets).state_dict()
    save_safetensors({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    members = [{key: model.about[key] for key in ("name", "sha256", "model")} for model in models]
    about = {
        "sha256": file_hashes(folder / WEIGHTS)[1],
        "parameters": sum(model.parameters for model in models),
        "macs": sum(model.macs for model in models),
        "classes": list(models[0].classes),
        "members": members,
        "name": "ensemble",
        "train_md5": models[0].about["train_md5"],
    }
    save_json(about, folder / DESCRIPTION)


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
    return Checkpoint(net.to(device).eval(), about, classes, parameters, macs, md5, sha256, size)
