"""The symbolic count against arithmetic by hand and against the network itself."""

import ast
import re
from typing import Any

import pytest
import torch
from helpers import pooling_model, tiny_model
from torch import Tensor, nn

from leanresnet.config.schema import Model
from leanresnet.errors import ConfigError
from leanresnet.models.complexity import breakdown, check_budget, count_macs, count_parameters
from leanresnet.models.resnet import ResNet


def config(blocks: str, channels: str, kernels: str, skip_kernels: str, pool: int) -> Model:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split()))

    return tiny_model(
        layers=len(numbers(blocks)),
        blocks=numbers(blocks),
        channels=numbers(channels),
        kernels=numbers(kernels),
        skip_kernels=numbers(skip_kernels),
        pool=pool,
    )


PAPER = config("3 3 2 3", "64 128 128 256", "3 3 3 3", "1 1 1 1", 4)

# Each part is a sum over convolutions of k*k*in*out, and 2*out for the batch norm that follows each. A block that
# keeps its shape has two convolutions and so 4*out; a layer's first block with a shortcut has three and so 6*out.
BY_HAND: dict[str, tuple[Model, int, list[int]]] = {
    "paper": (
        PAPER,
        4_935_242,
        [
            27 * 64 + 2 * 64,
            3 * (18 * 64 * 64 + 4 * 64),
            9 * 64 * 128 + 9 * 128 * 128 + 64 * 128 + 6 * 128 + 2 * (18 * 128 * 128 + 4 * 128),
            18 * 128 * 128 + 128 * 128 + 6 * 128 + 18 * 128 * 128 + 4 * 128,
            9 * 128 * 256 + 9 * 256 * 256 + 128 * 256 + 6 * 256 + 2 * (18 * 256 * 256 + 4 * 256),
            256 * 10 + 10,
        ],
    ),
    "resnet-18": (
        config("2 2 2 2", "64 128 256 512", "3 3 3 3", "1 1 1 1", 4),
        11_173_962,
        [
            27 * 64 + 2 * 64,
            2 * (18 * 64 * 64 + 4 * 64),
            9 * 64 * 128 + 9 * 128 * 128 + 64 * 128 + 6 * 128 + 18 * 128 * 128 + 4 * 128,
            9 * 128 * 256 + 9 * 256 * 256 + 128 * 256 + 6 * 256 + 18 * 256 * 256 + 4 * 256,
            9 * 256 * 512 + 9 * 512 * 512 + 256 * 512 + 6 * 512 + 18 * 512 * 512 + 4 * 512,
            512 * 10 + 10,
        ],
    ),
    "three layers of 1, 2, 1 blocks": (
        config("1 2 1", "64 128 256", "3 3 3", "1 1 1", 8),
        1_523_018,
        [
            27 * 64 + 2 * 64,
            18 * 64 * 64 + 4 * 64,
            9 * 64 * 128 + 9 * 128 * 128 + 64 * 128 + 6 * 128 + 18 * 128 * 128 + 4 * 128,
            9 * 128 * 256 + 9 * 256 * 256 + 128 * 256 + 6 * 256,
            256 * 10 + 10,
        ],
    ),
    "tiny": (
        tiny_model(),
        5_266,
        [
            27 * 8 + 2 * 8,
            18 * 8 * 8 + 4 * 8,
            9 * 8 * 16 + 9 * 16 * 16 + 8 * 16 + 6 * 16,
            16 * 10 + 10,
        ],
    ),
    "kernel 5": (
        config("1 1", "8 16", "5 5", "1 1", 16),
        13_458,
        [
            27 * 8 + 2 * 8,
            50 * 8 * 8 + 4 * 8,
            25 * 8 * 16 + 25 * 16 * 16 + 8 * 16 + 6 * 16,
            16 * 10 + 10,
        ],
    ),
    "skip kernel 3": (
        config("1 1", "8 16", "3 3", "3 3", 16),
        6_290,
        [
            27 * 8 + 2 * 8,
            18 * 8 * 8 + 4 * 8,
            9 * 8 * 16 + 9 * 16 * 16 + 9 * 8 * 16 + 6 * 16,
            16 * 10 + 10,
        ],
    ),
    "kernels that differ by layer": (
        config("1 1 2", "8 12 16", "1 3 5", "5 3 1", 8),
        28_010,
        [
            27 * 8 + 2 * 8,
            2 * 8 * 8 + 4 * 8,
            9 * 8 * 12 + 9 * 12 * 12 + 9 * 8 * 12 + 6 * 12,
            25 * 12 * 16 + 25 * 16 * 16 + 12 * 16 + 6 * 16 + 50 * 16 * 16 + 4 * 16,
            16 * 10 + 10,
        ],
    ),
    "pool 1": (
        config("1 1", "8 16", "3 3", "1 1", 1),
        46_066,
        [
            27 * 8 + 2 * 8,
            18 * 8 * 8 + 4 * 8,
            9 * 8 * 16 + 9 * 16 * 16 + 8 * 16 + 6 * 16,
            16 * 16 * 16 * 10 + 10,
        ],
    ),
    "pool 2": (
        config("1 1", "8 16", "3 3", "1 1", 2),
        15_346,
        [
            27 * 8 + 2 * 8,
            18 * 8 * 8 + 4 * 8,
            9 * 8 * 16 + 9 * 16 * 16 + 8 * 16 + 6 * 16,
            8 * 8 * 16 * 10 + 10,
        ],
    ),
    "one layer": (
        config("2", "16", "3", "1", 32),
        9_978,
        [27 * 16 + 2 * 16, 2 * (18 * 16 * 16 + 4 * 16), 16 * 10 + 10],
    ),
    "one layer, pool 8": (
        config("1", "16", "3", "3", 8),
        7_706,
        [27 * 16 + 2 * 16, 18 * 16 * 16 + 4 * 16, 4 * 4 * 16 * 10 + 10],
    ),
    "channels that repeat": (
        config("1 2 1", "32 32 32", "3 3 3", "1 1 1", 8),
        77_674,
        [
            27 * 32 + 2 * 32,
            18 * 32 * 32 + 4 * 32,
            18 * 32 * 32 + 32 * 32 + 6 * 32 + 18 * 32 * 32 + 4 * 32,
            18 * 32 * 32 + 32 * 32 + 6 * 32,
            32 * 10 + 10,
        ],
    ),
    "channels that shrink": (
        config("1 1", "24 10", "3 3", "1 1", 16),
        14_630,
        [
            27 * 24 + 2 * 24,
            18 * 24 * 24 + 4 * 24,
            9 * 24 * 10 + 9 * 10 * 10 + 24 * 10 + 6 * 10,
            10 * 10 + 10,
        ],
    ),
    "six layers": (
        config("1 1 1 1 1 1", "4 4 4 4 4 4", "3 3 3 3 3 3", "1 1 1 1 1 1", 1),
        2_110,
        [27 * 4 + 2 * 4, 18 * 4 * 4 + 4 * 4, *[18 * 4 * 4 + 4 * 4 + 6 * 4] * 5, 4 * 10 + 10],
    ),
    # 24 whitening filters of 2x2 with biases; a layer opens with a convolution; then blocks, 4*out each.
    "pooled": (
        pooling_model(
            layers=3, blocks=(0, 1, 1), channels=(64, 192, 256), kernels=(3,) * 3, skip_kernels=(1,) * 3, pool=3
        ),
        2_415_682,
        [
            24 * 12 + 24,
            9 * 24 * 64 + 2 * 64,
            9 * 64 * 192 + 2 * 192 + 18 * 192 * 192 + 4 * 192,
            9 * 192 * 256 + 2 * 256 + 18 * 256 * 256 + 4 * 256,
            256 * 10 + 10,
        ],
    ),
    # No batch norm behind the stem or the shortcut; one of the inputs before each branch, and one at the end.
    "pre-activation": (
        tiny_model(block="preactivation"),
        5_234,
        [
            27 * 8,
            18 * 8 * 8 + 4 * 8,
            2 * 8 + 9 * 8 * 16 + 2 * 16 + 9 * 16 * 16 + 8 * 16,
            2 * 16,
            16 * 10 + 10,
        ],
    ),
    # Two 1x1 convolutions with biases a block: to a quarter of its channels, and back.
    "squeeze and excitation": (
        tiny_model(squeeze_excite=4),
        5_456,
        [
            27 * 8 + 2 * 8,
            18 * 8 * 8 + 4 * 8 + 2 * 8 * 2 + 2 + 8,
            9 * 8 * 16 + 9 * 16 * 16 + 8 * 16 + 6 * 16 + 2 * 16 * 4 + 4 + 16,
            16 * 10 + 10,
        ],
    ),
    "narrowest": (
        config("1", "1", "1", "1", 32),
        55,
        [27 + 2, 2 + 4, 10 + 10],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_parameters_equal_the_count_by_hand(name: str) -> None:
    model, total, parts = BY_HAND[name]
    assert sum(parts) == total
    assert count_parameters(model) == total
    end = ["norm"] if model.block == "preactivation" else []
    prefixes = ["stem", *(f"layers.{n}" for n in range(model.layers)), *end, "classifier"]
    layers = breakdown(model)
    assert [sum(layer.parameters for layer in layers if layer.name.startswith(p)) for p in prefixes] == parts


@pytest.mark.parametrize("name", BY_HAND)
def test_breakdown_equals_the_network_module_by_module(name: str) -> None:
    model = BY_HAND[name][0]
    net = ResNet(model, [0.5] * 3, [0.25] * 3)
    built = [
        (module_name, sum(p.numel() for p in module.parameters(recurse=False)))
        for module_name, module in net.named_modules()
        if list(module.parameters(recurse=False))
    ]
    assert [(layer.name, layer.parameters) for layer in breakdown(model)] == built


def test_macs_of_the_paper() -> None:
    by_hand = [
        27 * 64 * 1024,
        6 * 9 * 64 * 64 * 1024,
        (9 * 64 * 128 + 5 * 9 * 128 * 128 + 64 * 128) * 256,
        (4 * 9 * 128 * 128 + 128 * 128) * 64,
        (9 * 128 * 256 + 5 * 9 * 256 * 256 + 128 * 256) * 16,
        256 * 10,
    ]
    assert sum(by_hand) == 529_205_760
    assert count_macs(PAPER) == 529_205_760


def test_macs_of_a_pooled_network() -> None:
    by_hand = [
        24 * 12 * 31**2,
        9 * 24 * 64 * 31**2,
        9 * 64 * 192 * 15**2 + 18 * 192 * 192 * 7**2,
        9 * 192 * 256 * 7**2 + 18 * 256 * 256 * 3**2,
        256 * 10,
    ]
    assert count_macs(BY_HAND["pooled"][0]) == sum(by_hand)


@pytest.mark.parametrize("name", [name for name in BY_HAND if name not in ("paper", "resnet-18")])
def test_macs_equal_those_of_a_forward_pass(name: str) -> None:
    model = BY_HAND[name][0]
    net = ResNet(model, [0.5] * 3, [0.25] * 3).eval()
    done: dict[str, int] = {}

    def count(module_name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            weight = module.get_parameter("weight")
            done[module_name] = output.numel() * weight[0].numel()

        return hook

    for module_name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count(module_name))
    with torch.no_grad():
        net(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert {layer.name: layer.macs for layer in breakdown(model) if layer.macs} == done


@pytest.mark.parametrize("budget", [4_935_241, 4_900_000, 4_000_000, 2_600_000])
def test_a_model_over_its_budget_is_refused_with_a_change_that_fits(budget: int) -> None:
    with pytest.raises(ConfigError) as caught:
        check_budget("baseline", PAPER, budget)
    found = re.fullmatch(
        r"baseline\.model: 4,935,242 parameters exceed max_parameters = ([\d,]+) by ([\d,]+); "
        r"(blocks|channels) = (\[[\d, ]+\]) would fit with ([\d,]+)",
        str(caught.value),
    )
    assert found, caught.value
    named, excess, key, values, promised = found.groups()
    assert named == f"{budget:,}"
    assert excess == f"{4_935_242 - budget:,}"
    before, after = getattr(PAPER, key), tuple(ast.literal_eval(values))
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1
    assert sum(before) % 8 == sum(after) % 8 or key == "blocks"
    advised = tiny_model(**PAPER.model_dump() | {key: after})
    assert f"{count_parameters(advised):,}" == promised
    assert count_parameters(advised) <= budget
    check_budget("baseline", advised, budget)


def test_the_advised_change_is_the_largest_that_fits() -> None:
    counts = []
    for key, step in (("blocks", 1), ("channels", 8)):
        for place, value in enumerate(getattr(PAPER, key)):
            for smaller in range(step, value, step):
                values = list(getattr(PAPER, key))
                values[place] = smaller
                counts.append(count_parameters(PAPER.model_copy(update={key: tuple(values)})))
    largest = max(count for count in counts if count <= 4_000_000)
    with pytest.raises(ConfigError, match=f"would fit with {largest:,}$"):
        check_budget("baseline", PAPER, 4_000_000)


def test_no_advice_where_no_single_change_fits() -> None:
    with pytest.raises(ConfigError, match=r"by 4,935,142; no single change fits$"):
        check_budget("student", PAPER, 100)


def test_the_advice_leaves_squeeze_and_excitation_a_channel() -> None:
    """[4, 16] has 3,716 parameters, but a squeeze of 8 leaves nothing of 4 channels; [12, 8] has 4,724."""
    with pytest.raises(ConfigError, match="no single change fits"):
        check_budget("student", tiny_model(channels=(12, 16), squeeze_excite=8), 4000)


def test_a_model_of_exactly_its_budget_passes() -> None:
    check_budget("baseline", PAPER, 4_935_242)


def test_a_budget_of_none_exempts() -> None:
    check_budget("teacher", config("9 9 9 9", "512 512 512 512", "3 3 3 3", "1 1 1 1", 4), None)
