"""Small configurations, networks and data that train in a moment."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from imports import ROOT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from leanresnet.config.schema import Augmentation, Model, Optimizer, Recipe, Schedule, Section
from leanresnet.data.splits import Split
from leanresnet.models.resnet import ResNet, build_model
from leanresnet.scaffold.presets import Preset, load_preset

S = TypeVar("S", bound=Section)
CLASSES = tuple("abcdefghij")
# Tensors this small gain nothing from a second thread, and on a busy machine threads mostly wait for each other.
torch.set_num_threads(1)
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)


def changed(section: S, **changes: Any) -> S:
    """A validated copy."""
    return type(section).model_validate(section.model_dump() | changes)


def tiny_model(**changes: Any) -> Model:
    """N = 2, 5,266 parameters."""
    model = {
        "layers": 2,
        "blocks": (1, 1),
        "channels": (8, 16),
        "kernels": (3, 3),
        "skip_kernels": (1, 1),
        "pool": 16,
        "pool_kind": "average",
        "stem": "conv",
        "downsample": "stride",
        "activation": "relu",
        "block": "basic",
        "squeeze_excite": 0,
    }
    return Model.model_validate(model | changes)


def pooling_model(**changes: Any) -> Model:
    """What short trainings use: whitening stem, pooled layers, one without blocks; maps of 31, 15, 7 pixels."""
    shape = {"stem": "whitening", "downsample": "pool", "activation": "gelu", "pool_kind": "max", "pool": 7}
    return tiny_model(**{"blocks": (0, 1), **shape, **changes})


@cache
def _demo() -> Preset:
    """Read once, because hundreds of tests start from it."""
    return load_preset("demo", ROOT / "presets")


def tiny_recipe(**changes: Any) -> Recipe:
    demo = _demo().params.train.baseline
    # Values of the tests' own, so that they do not depend on the demo's length and size.
    schedule = changed(demo.schedule, warmup_epochs=2).model_dump()
    small = {"model": tiny_model().model_dump(), "epochs": 4, "batch_size": 32, "schedule": schedule}
    return changed(demo, **{**small, **changes})


def optimizer_settings(**changes: Any) -> Optimizer:
    return changed(tiny_recipe().optimizer, **changes)


def schedule_settings(**changes: Any) -> Schedule:
    return changed(tiny_recipe().schedule, **changes)


def augmentation_settings(**changes: Any) -> Augmentation:
    return changed(tiny_recipe().augmentation, **changes)


def tiny_net(seed: int = 0, **changes: Any) -> ResNet:
    return build_model(tiny_model(**changes), MEAN, STD, seed)


def synthetic_split(count: int = 60, seed: int = 0, noise: float = 0.3) -> Split:
    """Ten classes in turn, each a pattern of 4x4 coloured fields under noise; the patterns hold for every seed."""
    patterns = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(1234))
    labels = torch.arange(count) % 10
    generator = torch.Generator().manual_seed(seed)
    images = F.interpolate(patterns[labels], size=(32, 32))
    images = (1 - noise) * images + noise * torch.rand(images.shape, generator=generator)
    return Split((images * 255).round().to(torch.uint8), labels, CLASSES, "synthetic")


def random_images(count: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@contextmanager
def read_only(folder: Path) -> Iterator[tuple[str, ...]]:
    """`folder` and all below it; gives the command before which another is held to it, whoever runs it."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for each in folders:
        each.chmod(0o555)
    try:
        # Modes bind root too once it has given up its right to pass them over.
        yield ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    finally:
        for each in folders:
            each.chmod(0o755)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system writes no file beyond `size` bytes, as on a full disk: the part that fits, then an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def put(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with others at dotted keys, which are there."""
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        assert first in values, key
        values = values | {first: put(values[first], {rest: value}) if rest else value}
    return values


class Brightness(nn.Module):
    """Scores that depend on each image and are far from uniform; counts the batches it sees."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.rows = nn.Parameter(torch.randn(32, 10, generator=generator) / 4, requires_grad=False)
        self.shift = shift
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(images)
        brightness: Tensor = images.float().mean((1, 3)) / 32
        return torch.sin(brightness @ self.rows * 9 + self.shift) * 3


def logits_of(net: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = net.eval()(images).double().numpy()
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(1, keepdims=True)
    return shares


class Recorded(TorchDispatchMode):
    """The names of torch's operations, in order; one on many tensors counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func._schema.name)
        return func(*args, **(kwargs or {}))
