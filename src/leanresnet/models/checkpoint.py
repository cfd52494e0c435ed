"""A trained model on disk: model.safetensors with the weights, and model.json with everything else needed to use it.

An ensemble is stored in the same way; its model.json has `members` instead of `model`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, FiniteFloat, PositiveInt, StringConstraints, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from leanresnet.config.load import load_section
from leanresnet.config.schema import Hex32, Hex64, Loose, Model, Section
from leanresnet.errors import DataError
from leanresnet.files import file_hashes, save_json, save_safetensors
from leanresnet.models.complexity import count_macs, count_parameters
from leanresnet.models.ensemble import Ensemble
from leanresnet.models.resnet import ResNet, build_model

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
WHAT = "a model's description"
Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class Member(Section):
    """One network of an ensemble."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    sha256: Hex64
    model: Model
    train_md5: Name | None = None


class Description(Section):
    """The keys of model.json from which the network is built and named; other keys are kept and checked by `Origin`."""

    model_config = ConfigDict(extra="allow")

    sha256: Hex64
    parameters: PositiveInt
    macs: PositiveInt
    classes: Annotated[tuple[Name, ...], Field(min_length=2), Loose]
    name: Name
    model: Model | None = None
    members: Annotated[tuple[Member, ...], Field(min_length=1), Loose] | None = None

    @model_validator(mode="after")
    def _is_one_or_several(self) -> "Description":
        if (self.model is None) == (self.members is None):
            raise ValueError("it has both or none of model and members, expected: one of them")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes = {list(self.classes)}, expected: each name once")
        return self

    @property
    def models(self) -> list[Model]:
        return [self.model] if self.model else [member.model for member in self.members or ()]


class Origin(Section):
    """The keys of model.json that describe how a single network was trained, from which its MLflow run is made."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    stage: Name
    params: dict[str, str | int | FiniteFloat | bool]
    dataset: Name
    train_md5: Hex32
    validation_md5: Hex32
    teacher_sha256: Hex64 | None

    @model_validator(mode="after")
    def _params_name_the_run(self) -> "Origin":
        needed = {"optimizer.name", "epochs", "seed"} | ({"distill.teacher"} if self.teacher_sha256 else set())
        if not needed <= self.params.keys():
            raise ValueError(
                f"params lack {', '.join(sorted(needed - self.params.keys()))}, expected: all keys of a recipe"
            )
        return self


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model.

    Attributes:
        folder: the folder that holds it.
        net: the network, in evaluation mode.
        about: all of model.json.
        classes: names of the classes, in the order of the logits.
        parameters, macs: numbers of parameters, and of multiply-accumulates per image.
        md5, sha256, size_bytes: of the file of the weights.
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
    weights: dict[str, Tensor], model: Model, classes: tuple[str, ...], provenance: dict[str, Any], folder: Path
) -> None:
    """Write the two files of a model, the description last.

    Args:
        weights: a state dict of `ResNet(model)`.
        model: sizes of the network.
        classes: names of the classes, in the order of the logits.
        provenance: recipe, digests of the data and teacher, which are recorded unchanged.
        folder: where to write.
    """
    about = {
        "parameters": count_parameters(model, len(classes)),
        "macs": count_macs(model, len(classes)),
        "classes": list(classes),
        "model": model.model_dump(mode="json"),
        **provenance,
    }
    _write(weights, about, folder)


def save_ensemble(models: "Sequence[Checkpoint]", folder: Path) -> None:
    """Write several models as one `Ensemble`.

    Raises:
        DataError: if the models did not hold out the same images, or one of them is given twice, is an ensemble, or
            does not say what it was trained on.
    """
    held_out = models[0].about.get("validation_md5")
    for model in models:
        _check_held_out(model, held_out, models[0].folder / DESCRIPTION)
    if len({model.sha256 for model in models}) < len(models):
        raise DataError("a member is named twice, expected: each once")
    nets = [model.net for model in models if isinstance(model.net, ResNet)]
    if len(nets) < len(models):
        raise DataError("a member is an ensemble, expected: single models")
    for model, key in product(models, ("dataset", "train_md5")):
        if key not in model.about:
            raise DataError(f"{model.folder / DESCRIPTION}: {key} is missing, expected: the data of its training")
    members = [{key: model.about[key] for key in ("name", "sha256", "model", "train_md5")} for model in models]
    about = {
        "parameters": sum(model.parameters for model in models),
        "macs": sum(model.macs for model in models),
        "classes": list(models[0].classes),
        "members": members,
        "name": "ensemble",
        "dataset": models[0].about["dataset"],
        "validation_md5": held_out,
    }
    _write(Ensemble(nets).state_dict(), about, folder)


def _write(weights: dict[str, Tensor], about: dict[str, Any], folder: Path) -> None:
    save_safetensors({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    save_json({"sha256": file_hashes(folder / WEIGHTS)[1], **about}, folder / DESCRIPTION)


def check_held_out(model: Checkpoint, validation: Path) -> None:
    """Refuse a model whose training may have seen images on which it, or a student that it teaches, is evaluated.

    The training and the validation split are disjoint parts of a data set's training images, and the file of a split
    also holds the names of the data set and of the classes. So a model that held out the same file was trained on other
    images of the same data set, and on none of its test images. Its number of training images does not matter.

    Args:
        validation: the file of the validation split.

    Raises:
        DataError: if the training of the model held out another file.
    """
    _check_held_out(model, file_hashes(validation)[0], validation)


def _check_held_out(model: Checkpoint, expected: str | None, of: Path) -> None:
    found = model.about.get("validation_md5")
    if found is None or found != expected:
        wrong = f"validation_md5 = {found}, so it may have learned from images that are held out here"
        remedy = "train it again on these splits, or set `split` to what it was trained with"
        raise DataError(f"{model.folder / DESCRIPTION}: {wrong}, expected: {expected} of {of}; {remedy}")


def check_unseen(model: Checkpoint, test: Path) -> None:
    """Refuse a test split whose file is one that the training of a model, or of a member of an ensemble, has used.

    Args:
        test: the file of the test split.

    Raises:
        DataError: if it is the file of the training or of the validation split.
    """
    trainings = model.about.get("members", [model.about])
    seen = {model.about.get("validation_md5"), *(each.get("train_md5") for each in trainings)}
    if file_hashes(test)[0] in seen:
        raise DataError(f"{test}: the training of {model.folder} has used these images, expected: the test split")


def load_model(folder: Path, device: torch.device | None = None) -> Checkpoint:
    """Read and verify what `save_model` or `save_ensemble` wrote.

    Raises:
        StorageError: if a file cannot be read.
        DataError: if model.json is not the description of a model, or the weights are damaged, not finite, or do not
            belong to it.
    """
    place = folder / DESCRIPTION
    described = load_section(place, Description, WHAT)
    md5, sha256 = file_hashes(folder / WEIGHTS)
    if sha256 != described.sha256:
        raise DataError(f"{folder / WEIGHTS}: SHA-256 {sha256}, expected: {described.sha256} of {place}")
    models, size = described.models, (folder / WEIGHTS).stat().st_size
    classes = len(described.classes)
    parameters, macs = (sum(count(model, classes) for model in models) for count in (count_parameters, count_macs))
    try:
        # Check the size before building the network, because a small description can ask for any amount of memory.
        if size < parameters * torch.float32.itemsize:
            raise ValueError(f"{size:,} bytes for {parameters:,} parameters")
        nets = [build_model(model, mean=[0.0] * 3, std=[1.0] * 3, seed=0, classes=classes) for model in models]
        net = Ensemble(nets) if described.members else nets[0]
        _fill(net, load_file(folder / WEIGHTS))
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{folder / WEIGHTS}: does not hold the model of {place} ({error})") from error
    about = described.model_dump(mode="json", exclude_unset=True)
    return Checkpoint(folder, net.to(device).eval(), about, described.classes, parameters, macs, md5, sha256, size)


def load_origin(folder: Path) -> Origin:
    """Return how the model in `folder` was trained.

    Raises:
        StorageError: if model.json cannot be read.
        DataError: if it does not describe a training.
    """
    return load_section(folder / DESCRIPTION, Origin, WHAT)


def _fill(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights; raise ValueError unless they are finite and have the names, shapes and types of the network's."""
    expected = net.state_dict()
    for name in sorted(expected.keys() ^ weights.keys()):
        raise ValueError(f"{name} is {'missing' if name in expected else 'unknown'}")
    for name, tensor in expected.items():
        found, wanted = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (weights[name], tensor))
        if found != wanted:
            raise ValueError(f"{name} is {found} and not {wanted}")
        if not weights[name].isfinite().all():
            raise ValueError(f"{name} has numbers that are NaN or infinite")
    net.load_state_dict(weights)
