"""The search for architectures of the study's family within a budget. They are counted without being built."""

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, product
from typing import Any, NamedTuple

from tqdm import tqdm

from leanresnet.config.schema import CLASSES, WHITENING_FILTERS, Model
from leanresnet.models.complexity import count_macs, count_parameters


class Candidate(NamedTuple):
    """An architecture with its numbers of parameters and of multiply-accumulates."""

    model: Model
    parameters: int
    macs: int

    @property
    def name(self) -> str:
        """Blocks, channels, and kernels of the convolutions and of the shortcuts: `b3-3-2-3.c64-128-128-256.f3.k1`."""
        sizes = {
            "b": self.model.blocks,
            "c": self.model.channels,
            "f": self.model.kernels[:1],
            "k": self.model.skip_kernels[:1],
        }
        return ".".join(key + "-".join(map(str, values)) for key, values in sizes.items())

    @property
    def shape(self) -> dict[str, Any]:
        """The values in which the candidates differ, as keys of a recipe's `model`."""
        keys = {"layers", "blocks", "channels", "kernels", "skip_kernels", "pool"}
        return self.model.model_dump(mode="json", include=keys)


def enumerate_models(
    base: Model,
    layers: Sequence[int],
    blocks: Sequence[int],
    channels: Sequence[int],
    kernels: Sequence[int],
    skip_kernels: Sequence[int],
) -> Iterator[Model]:
    """Iterate over all architectures that differ from `base` in their sizes.

    The last pool covers the whole map. A number of layers after which no map is left is skipped, and so are channels of
    which squeezing leaves nothing.

    Args:
        base: determines everything else, such as the kind of the blocks.
        layers: numbers of layers N.
        blocks: numbers of blocks B_i of each layer.
        channels: numbers of channels C_i of each layer, which never decrease from layer to layer.
        kernels: sizes of the convolutions F, the same in all layers.
        skip_kernels: sizes of the shortcuts' convolutions K, the same in all layers. If no shortcut has a convolution,
            only the first size is used.
    """
    channels = [each for each in channels if each >= base.squeeze_excite]
    if not channels:
        return
    for count in layers:
        if base.model_copy(update={"layers": count}).last_map == 0:
            continue
        template = {**base.model_dump(), "layers": count}
        shape = {"blocks": (1,) * count, "channels": (max(channels),) * count, "pool": 1}
        odd = {"kernels": (3,) * count, "skip_kernels": (1,) * count}
        whole = Model.model_validate({**template, **shape, **odd})
        whole = whole.model_copy(update={"pool": whole.last_map})
        for widths in combinations_with_replacement(sorted(channels), count):
            # The first layer has a shortcut only where its width is another than that of a whitening stem.
            has_shortcut = count > 1 or (base.stem == "whitening" and widths[0] != WHITENING_FILTERS)
            skips = skip_kernels if base.downsample != "pool" and has_shortcut else skip_kernels[:1]
            for depths, kernel, skip_kernel in product(product(blocks, repeat=count), kernels, skips):
                # These are valid by construction, and validating each of them would take most of the time.
                yield whole.model_copy(
                    update={
                        "channels": widths,
                        "blocks": depths,
                        "kernels": (kernel,) * count,
                        "skip_kernels": (skip_kernel,) * count,
                    }
                )


def near_budget(
    models: Iterator[Model], budget: int, least: float, classes: int = CLASSES
) -> tuple[int, list[Candidate]]:
    """Count `models`, and select those with `least` * `budget` to `budget` parameters; on a terminal, show how many.

    Returns:
        (number of models, the selected ones sorted by multiply-accumulates)
    """
    counted, found = 0, []
    for model in tqdm(models, "counted", unit=" models", leave=False, disable=None):
        counted += 1
        parameters = count_parameters(model, classes)
        if least * budget <= parameters <= budget:
            found.append(Candidate(model, parameters, count_macs(model, classes)))
    return counted, sorted(found, key=lambda each: each.macs)


def spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return `count` candidates, evenly spaced from the first to the last; all if there are not more."""
    if len(candidates) <= count:
        return list(candidates)
    if count == 1:
        return [candidates[len(candidates) // 2]]
    return [candidates[round(place * (len(candidates) - 1) / (count - 1))] for place in range(count)]
