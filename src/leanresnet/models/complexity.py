"""Numbers of parameters and multiply-accumulates (MACs), computed from the configuration.

No network is built, so counting takes microseconds and does not import torch. By the usual convention, only
convolutions and linear layers have MACs; batch norm and pools have none.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from leanresnet.config.schema import CLASSES, WHITENING_FILTERS, Model
from leanresnet.errors import ConfigError


class Layer(NamedTuple):
    """The counts of one module, with its name in `ResNet.named_modules()`."""

    name: str
    parameters: int
    macs: int


def breakdown(model: Model, classes: int = CLASSES) -> list[Layer]:
    """Return the counts of every module with parameters, in the order of `ResNet.named_modules()`."""
    return list(_modules(model, classes))


def count_parameters(model: Model, classes: int = CLASSES) -> int:
    """Return the number of weights and biases, including those of a whitening stem, which are not trained."""
    return sum(layer.parameters for layer in breakdown(model, classes))


def count_macs(model: Model, classes: int = CLASSES) -> int:
    """Return the number of multiply-accumulates of the forward pass of one 32x32 image."""
    return sum(layer.macs for layer in breakdown(model, classes))


def check_budget(key: str, model: Model, budget: int | None, classes: int = CLASSES) -> None:
    """Refuse a model with more than `budget` parameters.

    Args:
        key: file and key of the recipe for the error message.
        budget: largest number of parameters, or None for no limit.
        classes: number of classes of the data.

    Raises:
        ConfigError: if the model exceeds the budget; the message names the excess and one change that would fit.
    """
    count = count_parameters(model, classes)
    if budget is None or count <= budget:
        return
    fitting = _largest_fit(model, budget, classes)
    advice = f"{fitting[0]} = {list(fitting[1])} would fit with {fitting[2]:,}" if fitting else "no single change fits"
    raise ConfigError(
        f"{key}.model: {count:,} parameters exceed max_parameters = {budget:,} by {count - budget:,}; {advice}"
    )


def _modules(model: Model, classes: int) -> Iterator[Layer]:
    sides = model.feature_map_sizes()
    if model.stem == "whitening":
        width = WHITENING_FILTERS
        weights = width * 2 * 2 * 3
        yield Layer("stem", weights + width, weights * sides[0] ** 2)
    elif model.block == "preactivation":
        width = model.channels[0]
        yield _conv("stem", 3, width, 3, sides[0])
    else:
        width = model.channels[0]
        yield from _conv_bn("stem", 3, width, 3, sides[0])
    kind = model.block, model.downsample, model.squeeze_excite
    sizes = zip(model.blocks, model.channels, model.kernels, model.skip_kernels, strict=True)
    for n, (blocks, channels, kernel, skip_kernel) in enumerate(sizes):
        yield from _layer(kind, n, blocks, (width, channels), (kernel, skip_kernel), (sides[n], sides[n + 1]))
        width = channels
    if model.block == "preactivation":
        yield _norm("norm", width)
    features = width * (model.last_map // model.pool) ** 2
    yield Layer("classifier", features * classes + classes, features * classes)


# A search counts a hundred thousand models, which consist of some thousand different layers.
@lru_cache(maxsize=1 << 14)
def _layer(
    kind: tuple[str, str, int],
    n: int,
    blocks: int,
    channels: tuple[int, int],
    kernels: tuple[int, int],
    sides: tuple[int, int],
) -> tuple[Layer, ...]:
    """Return the modules of layer `n`.

    Args:
        kind: the model's block, downsample and squeeze_excite.
        channels, sides: of the maps before and after the layer.
        kernels: of its convolutions and of its shortcuts.
    """
    block, downsample, squeeze_excite = kind
    (width, outputs), (kernel, skip_kernel), side = channels, kernels, sides[1]
    found: list[Layer] = []
    if downsample == "pool":
        found += _conv_bn(f"layers.{n}.0", width, outputs, kernel, sides[0])
        width = outputs
    for b in range(blocks):
        stride = 2 if downsample == "stride" and n > 0 and b == 0 else 1
        name = f"layers.{n}.{b + (downsample == 'pool')}"
        projects = stride != 1 or width != outputs
        if block == "preactivation":
            found.append(_norm(f"{name}.norm1", width))
            found.append(_conv(f"{name}.conv1", width, outputs, kernel, side))
            found.append(_norm(f"{name}.norm2", outputs))
            found.append(_conv(f"{name}.conv2", outputs, outputs, kernel, side))
        else:
            found += _conv_bn(f"{name}.conv1", width, outputs, kernel, side)
            found += _conv_bn(f"{name}.conv2", outputs, outputs, kernel, side)
        if squeeze_excite:
            squeezed = outputs // squeeze_excite
            found.append(Layer(f"{name}.squeeze.fc1", outputs * squeezed + squeezed, outputs * squeezed))
            found.append(Layer(f"{name}.squeeze.fc2", squeezed * outputs + outputs, squeezed * outputs))
        if projects and block == "preactivation":
            found.append(_conv(f"{name}.shortcut", width, outputs, skip_kernel, side))
        elif projects:
            found += _conv_bn(f"{name}.shortcut", width, outputs, skip_kernel, side)
        width = outputs
    return tuple(found)


def _conv(name: str, inputs: int, outputs: int, kernel: int, side: int) -> Layer:
    weights = kernel * kernel * inputs * outputs
    return Layer(name, weights, weights * side * side)


def _norm(name: str, channels: int) -> Layer:
    return Layer(name, 2 * channels, 0)


def _conv_bn(name: str, inputs: int, outputs: int, kernel: int, side: int) -> Iterator[Layer]:
    yield _conv(f"{name}.0", inputs, outputs, kernel, side)
    yield _norm(f"{name}.1", outputs)


def _largest_fit(model: Model, budget: int, classes: int) -> tuple[str, tuple[int, ...], int] | None:
    """Return the largest model within the budget that differs in one entry of `blocks` or `channels`, or None.

    Returns:
        (key, its new value, number of parameters)
    """
    best: tuple[str, tuple[int, ...], int] | None = None
    for key, step in (("blocks", 1), ("channels", 8)):
        values = getattr(model, key)
        for index, value in enumerate(values):
            least = int(model.downsample == "stride") if key == "blocks" else max(1, model.squeeze_excite)
            for smaller in range(value - step, least - 1, -step):
                changed = (*values[:index], smaller, *values[index + 1 :])
                count = count_parameters(model.model_copy(update={key: changed}), classes)
                if count <= budget:
                    if best is None or count > best[2]:
                        best = (key, changed, count)
                    break
    return best
