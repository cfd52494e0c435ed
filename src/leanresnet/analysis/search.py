"""Architectures of the paper's family within a budget: enumerated and counted, none of them built."""

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, product
from typing import NamedTuple

from leanresnet.config.schema import Model
from leanresnet.models.complexity import count_macs, count_parameters


class Candidate(NamedTuple):
    model: Model
    parameters: int
    macs: int

    @property
    def name(self) -> str:
        """`b3-3-2-3.c64-128-128-256.f3.k1`: blocks, channels, kernels of the convolutions and of the shortcuts."""
        sizes = {
            "b": self.model.blocks,
            "c": self.model.channels,
            "f": self.model.kernels[:1],
            "k": self.model.skip_kernels[:1],
        }
        return ".".join(key + "-".join(map(str, values)) for key, values in sizes.items())

    def overrides(self, key: str) -> list[str]:
        """`key.layers=4`, `key.blocks=[3,3,2,3]`, ...: values for DVC, which make the model of `key` this one."""
        keys = {"layers", "blocks", "channels", "kernels", "skip_kernels", "pool"}
        shape = self.model.model_dump(mode="json", include=keys)
        return [f"{key}.{name}={str(value).replace(' ', '')}" for name, value in shape.items()]


def enumerate_models(
    base: Model,
    layers: Sequence[int],
    blocks: Sequence[int],
    channels: Sequence[int],
    kernels: Sequence[int],
    skip_kernels: Sequence[int],
) -> Iterator[Model]:
    """Every model of `base`'s kind with N of `layers`, B_i of `blocks` and C_i of `channels`, which never decrease.

    F is one of `kernels` and K one of `skip_kernels`, the same in all layers; K is the first of them
    where no shortcut has a convolution. The pool at the end spans what is left of the map; an N that
    leaves none is left out.
    """
    if base.downsample == "pool":
        skip_kernels = skip_kernels[:1]
    for count in layers:
        if base.model_copy(update={"layers": count}).last_map == 0:
            continue
        template = {**base.model_dump(), "layers": count}
        shape = {"blocks": (1,) * count, "channels": (max(channels),) * count, "pool": 1}
        odd = {"kernels": (3,) * count, "skip_kernels": (1,) * count}
        whole = Model.model_validate({**template, **shape, **odd})
        whole = whole.model_copy(update={"pool": whole.last_map})
        for widths in combinations_with_replacement(sorted(channels), count):
            if base.squeeze_excite > widths[0]:
                continue
            for depths, kernel, skip_kernel in product(product(blocks, repeat=count), kernels, skip_kernels):
                # Valid by construction; validating each would take most of the time.
                yield whole.model_copy(
                    update={
                        "channels": widths,
                        "blocks": depths,
                        "kernels": (kernel,) * count,
                        "skip_kernels": (skip_kernel,) * count,
                    }
                )


def near_budget(models: Iterator[Model], budget: int, least: float) -> tuple[int, list[Candidate]]:
    """How many there are, and those with `least` to 1 times `budget` parameters, by multiply-accumulates."""
    counted, found = 0, []
    for model in models:
        counted += 1
        parameters = count_parameters(model)
        if least * budget <= parameters <= budget:
            found.append(Candidate(model, parameters, count_macs(model)))
    return counted, sorted(found, key=lambda each: each.macs)


def spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """`count` of them, evenly from the cheapest to the dearest; all where there are no more."""
    if len(candidates) <= count:
        return list(candidates)
    if count == 1:
        return [candidates[len(candidates) // 2]]
    return [candidates[round(place * (len(candidates) - 1) / (count - 1))] for place in range(count)]
