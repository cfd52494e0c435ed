"""A trained model on disk: model.safetensors, and model.json that says all that is needed to use it."""

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
from leanresnet.models.resnet import ResNet, build_model

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode with what is known about it.

    `md5` and `sha256` are of the weights file; `about` is all of model.json.
    """

    net: ResNet
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


def load_model(folder: Path, device: torch.device | None = None) -> Checkpoint:
    """Read and verify what `save_model` wrote.

    Raises:
        StorageError: a file cannot be read.
        DataError: the weights are damaged or belong to another description.
    """
    about = load_json(folder / DESCRIPTION)
    md5, sha256 = file_hashes(folder / WEIGHTS)
    try:
        expected, model, classes = about["sha256"], Model.model_validate(about["model"]), tuple(about["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / DESCRIPTION}: not a model's description, accepted: a file that this version's training wrote"
        ) from error
    if sha256 != expected:
        raise DataError(f"{folder / WEIGHTS}: SHA-256 {sha256}, accepted: {expected} of {folder / DESCRIPTION}")
    net = build_model(model, mean=[0.0] * 3, std=[1.0] * 3, seed=0)
    try:
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"{folder / WEIGHTS}: does not hold the model of {folder / DESCRIPTION}") from error
    size = (folder / WEIGHTS).stat().st_size
    return Checkpoint(
        net.to(device).eval(), about, classes, count_parameters(model), count_macs(model), md5, sha256, size
    )
