"""The options of a recipe whose code differs on a device, each as a small training, and the presets to measure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.trainers import MEAN, STD
from leanresnet.config.schema import Recipe
from leanresnet.models.resnet import build_model
from leanresnet.scaffold.presets import load_preset, merge
from leanresnet.training.loop import Criterion
from leanresnet.training.losses import DistillationLoss
from pipeline.workspace import released

# Two layers of one block with 16 and 32 channels.
SMALL = {
    "layers": 2,
    "blocks": [1, 1],
    "channels": [16, 32],
    "kernels": [3, 3],
    "skip_kernels": [1, 1],
    "pool": 16,
}
SHORT = {"epochs": 2, "schedule": {"warmup_epochs": 0.2}}
POOLED = {"stem": "whitening", "downsample": "pool", "activation": "gelu", "pool_kind": "max", "pool": 7}

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "constant_crop": {"augmentation": {"padding_mode": "constant"}},
    "alternating_flip": {"augmentation": {"flip_mode": "alternating"}},
    "cutout": {"augmentation": {"cutout": 8}},
    "mixup": {"augmentation": {"mix": "mixup"}},
    "cutmix": {"augmentation": {"mix": "cutmix"}},
    "trivial_augment": {"augmentation": {"auto_augment": "trivial_augment"}},
    "rand_augment": {"augmentation": {"auto_augment": "rand_augment"}},
    "progressive": {"progressive_resizing": {"epochs": 1, "size": 24}},
}


@dataclass(frozen=True)
class Option:
    """What differs from the default's recipe, and the arguments of the distillation loss where there is a teacher."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    distillation: Mapping[str, Any] | None = None

    def criterion(self, recipe: Recipe, device: torch.device) -> Criterion | None:
        """The loss, with a teacher of the recipe's network; None for the labels alone."""
        if self.distillation is None:
            return None
        settings = {"alpha": 0.9, "temperature": 4.0, "beta": None, "label_smoothing": 0.0, **self.distillation}
        return DistillationLoss(build_model(recipe.model, MEAN, STD, recipe.seed + 1).to(device), **settings)


OPTIONS: dict[str, Option] = {
    "default": Option(),
    # Adagrad's first step has the size of the learning rate whatever the gradient, so a large one amplifies roundings.
    "adagrad": Option({"optimizer": {"name": "adagrad", "lr": 0.01}}),
    "adadelta": Option({"optimizer": {"name": "adadelta"}}),
    **{name: Option({"optimizer": {"name": name, "lr": 0.001}}) for name in ("adam", "radam", "adamw")},
    "muon": Option({"optimizer": {"name": "muon", "lr": 0.03}}),
    "clipped": Option({"max_grad_norm": 1.0}),
    "averaged": Option({"ema_decay": 0.99}),
    "sam": Option({"sam": {"rho": 0.05, "adaptive": False}}),
    "selection": Option({"selection": {"keep": 0.5, "width": 0.5}}),
    "asam": Option({"sam": {"rho": 0.5}}),
    "preactivation": Option({"model": {"block": "preactivation"}}),
    "squeeze_excite": Option({"model": {"squeeze_excite": 4}}),
    "pooled": Option({"model": POOLED, "initialization": "dirac"}),
    "stochastic_depth": Option({"stochastic_depth": 0.2}),
    "distilled": Option(distillation={}),
    "decoupled": Option(distillation={"beta": 2.0}),
    "attention": Option(distillation={"attention": 1.0}),
    **{name: Option(changes) for name, changes in AUGMENTATIONS.items()},
}


def preset(name: str) -> Recipe:
    """The baseline's recipe."""
    return load_preset(name, released("presets")).params.train.baseline


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    return Recipe.model_validate(merge(recipe.model_dump(), dict(changes)))


def small(changes: Mapping[str, Any]) -> Recipe:
    """The default's recipe with a small network, batches of 64 and these changes."""
    return changed(changed(preset("default"), {**SHORT, "model": SMALL, "batch_size": 64}), changes)


def shrunk(recipe: Recipe) -> Recipe:
    """A recipe of the same kind that takes a step in milliseconds, for a dry run."""
    width = {"channels": [8] * recipe.model.layers}
    return changed(recipe, {**SHORT, "model": width, "batch_size": 16, "max_parameters": None})


@dataclass(frozen=True)
class Run:
    """What the steps of `bench gpu` measure.

    Args:
        data: the folder with the splits.
        device: the GPU, or in a dry run a CPU.
        dry: whether everything is as small as it can be, to try the steps.
    """

    data: Path
    device: torch.device
    dry: bool

    def recipe(self, name: str) -> Recipe:
        return shrunk(preset(name)) if self.dry else preset(name)
