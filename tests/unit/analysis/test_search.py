"""Architectures within a budget: what is enumerated, what is kept, how it is named."""

from itertools import product

import pytest
from helpers import changed, pooling_model, tiny_model

from leanresnet.analysis.search import Candidate, enumerate_models, near_budget, spread
from leanresnet.config.schema import WHITENING_FILTERS, Model
from leanresnet.models.complexity import count_macs, count_parameters
from leanresnet.models.resnet import build_model

SIZES = {"layers": (2, 3), "blocks": (1, 2), "channels": (16, 8), "kernels": (3, 5), "skip_kernels": (1, 3)}


def models(**changes: object) -> list[Model]:
    return list(enumerate_models(changed(tiny_model(), **changes), **SIZES))


def test_every_combination_occurs_once_and_channels_never_decrease() -> None:
    found = {(m.layers, m.blocks, m.channels, m.kernels, m.skip_kernels) for m in models()}
    expected = {
        (n, blocks, channels, (kernel,) * n, (skip,) * n)
        for n in (2, 3)
        for blocks in product((1, 2), repeat=n)
        for channels in product((8, 16), repeat=n)
        for kernel in (3, 5)
        for skip in (1, 3)
        if list(channels) == sorted(channels)
    }
    assert found == expected
    assert len(models()) == len(expected)


def test_what_is_enumerated_is_valid_and_can_be_built() -> None:
    found = models()
    assert all(Model.model_validate(model.model_dump()) == model for model in found)
    built = build_model(found[-1], [0.5] * 3, [0.2] * 3, seed=0)
    assert sum(p.numel() for p in built.parameters()) == count_parameters(found[-1])


def test_channels_that_squeezing_leaves_nothing_of_are_left_out() -> None:
    assert {model.channels[0] for model in models(channels=(16, 16), squeeze_excite=16)} == {16}
    base = changed(tiny_model(), channels=(16, 16), squeeze_excite=16)
    assert not list(enumerate_models(base, **SIZES | {"channels": (8,)}))


def test_layers_that_leave_no_map_are_left_out_and_shortcuts_that_are_not_there_come_once() -> None:
    sizes = SIZES | {"layers": (4, 5), "channels": (8,), "blocks": (1,)}
    found = list(enumerate_models(pooling_model(), **sizes))
    assert {(m.layers, m.skip_kernels[0]) for m in found} == {(4, 1)}
    assert len({count_parameters(m) for m in found}) == len(found) == 2
    assert all(Model.model_validate(m.model_dump()) == m for m in found)


def test_one_layer_with_strides_has_no_shortcut_and_comes_once() -> None:
    sizes = SIZES | {"layers": (1, 2), "channels": (8,), "blocks": (1,), "skip_kernels": (1, 3)}
    found = list(enumerate_models(tiny_model(), **sizes))
    assert [model.skip_kernels for model in found if model.layers == 1] == [(1,)] * len(SIZES["kernels"])
    assert {model.skip_kernels for model in found if model.layers == 2} == {(1, 1), (3, 3)}


def test_behind_a_whitening_stem_the_first_layer_has_a_shortcut_unless_it_is_as_wide() -> None:
    sizes = SIZES | {"layers": (1,), "channels": (8, WHITENING_FILTERS), "blocks": (1,), "kernels": (3,)}
    found = list(enumerate_models(changed(tiny_model(), stem="whitening"), **sizes))
    kernels = [(8, 1), (8, 3), (WHITENING_FILTERS, 1)]
    assert sorted((model.channels[0], model.skip_kernels[0]) for model in found) == kernels
    assert len({count_parameters(model) for model in found}) == len(kernels)


def test_those_near_the_budget_come_by_cost() -> None:
    sizes = sorted(count_parameters(model) for model in models())
    budget = sizes[len(sizes) // 2] + 1
    counted, found = near_budget(iter(models()), budget, 0.5)
    assert counted == len(sizes)
    assert sorted(each.parameters for each in found) == [size for size in sizes if budget / 2 <= size <= budget]
    assert 1 < len(found) < len(sizes)
    for each in found:
        assert (each.parameters, each.macs) == (count_parameters(each.model), count_macs(each.model))
    assert [each.macs for each in found] == sorted(each.macs for each in found)


@pytest.mark.parametrize(
    ("count", "places"), [(1, [3]), (2, [0, 6]), (3, [0, 3, 6]), (7, list(range(7))), (9, list(range(7)))]
)
def test_a_choice_is_spread_from_end_to_end(count: int, places: list[int]) -> None:
    candidates = [Candidate(tiny_model(), 100, macs) for macs in range(7)]
    assert [each.macs for each in spread(candidates, count)] == places


def test_a_shape_makes_the_base_the_candidate() -> None:
    for model in models()[::7]:
        assert changed(tiny_model(), **Candidate(model, 0, 0).shape) == model


def test_names_tell_candidates_apart_and_suit_a_git_reference() -> None:
    names = [Candidate(model, 0, 0).name for model in models()]
    assert len(set(names)) == len(names)
    assert Candidate(tiny_model(), 0, 0).name == "b1-1.c8-16.f3.k1"
