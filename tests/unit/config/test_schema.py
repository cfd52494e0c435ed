"""What the sections of params.yaml refuse, and that no value has a default in the code."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import put
from imports import ROOT
from pydantic import ValidationError

from leanresnet.config.load import load_params, validate
from leanresnet.config.schema import Params, Recipe, flatten
from leanresnet.errors import ConfigError


def load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506


DEFAULT = load(ROOT / "params.yaml")


def dotted(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def refusal(changes: dict[str, Any]) -> str:
    """What is said of the default params with `changes`."""
    with pytest.raises(ConfigError) as caught:
        validate(put(DEFAULT, changes), "params.yaml", Params)
    message = str(caught.value)
    assert message.startswith("params.yaml: ")
    assert len(message.splitlines()) == 1
    return message


def accepted(params: dict[str, Any]) -> Params:
    return validate(params, "params.yaml", Params)


def test_the_file_says_what_it_is_read_as() -> None:
    assert load_params(ROOT / "params.yaml").model_dump(mode="json") == DEFAULT


def test_no_key_has_a_default() -> None:
    assert [key for key in dotted(DEFAULT) if not _is_required(key)] == []


def _is_required(key: str) -> bool:
    params = copy.deepcopy(DEFAULT)
    *sections, last = key.split(".")
    section = params
    for name in sections:
        section = section[name]
    del section[last]
    try:
        Params.model_validate(params)
    except ValidationError as error:
        return [(".".join(map(str, e["loc"])), e["type"]) for e in error.errors()] == [(key, "missing")]
    return False


def test_recipes_come_in_the_order_of_training() -> None:
    params = load_params(ROOT / "params.yaml")
    assert list(params.recipes()) == ["baseline", "teacher", "student"]
    assert params.recipes()["student"] is params.distill.student


def test_flatten_has_a_scalar_for_every_key() -> None:
    params = load_params(ROOT / "params.yaml")
    flat = flatten(params)
    assert list(flat) == list(dotted(DEFAULT))
    assert all(isinstance(value, (str, int, float, bool)) for value in flat.values())


def test_flatten_writes_lists_as_text_and_null_as_none() -> None:
    flat = flatten(load_params(ROOT / "params.yaml").train.teacher, "teacher.")
    assert flat["teacher.model.blocks"] == "2,2,2,2"
    assert flat["teacher.optimizer.betas"] == "0.9,0.999"
    assert flat["teacher.max_parameters"] == "none"
    assert flat["teacher.epochs"] == 30
    assert flat["teacher.optimizer.nesterov"] is True


def test_sections_cannot_be_changed() -> None:
    recipe: Recipe = load_params(ROOT / "params.yaml").train.baseline
    with pytest.raises(ValidationError, match="frozen"):
        recipe.epochs = 3


BASE, MODEL = "train.baseline", "train.baseline.model"
OUT_OF_RANGE: dict[str, list[Any]] = {
    "download.dataset": ["mnist", 10, None],
    "download.size": [0, -1, 1.5, "1", True],
    "download.md5": ["c58f", "C58F30108F718F92721AF3B95E74349A", 5],
    "download.sha256": ["c58f30108f718f92721af3b95e74349a", "g" * 64],
    "download.mirrors": [
        [],
        ["http://127.0.0.1/x"],
        ["https://"],
        ["https://127.0.0.1"],
        ["file:///etc/passwd"],
        "https://a/b",
    ],
    "split.validation": [0, -5, 10.0, True],
    "split.training": [0, -5, 10.0, True],
    "split.seed": [-1, 2**31, 0.0, None],
    f"{MODEL}.layers": [0, 7],
    f"{MODEL}.blocks": [[3, 3, 2], [3, 3, 0, 3], [3, 3, 2.0, 3], [True, 1, 1, 1], 3, "3,3,2,3"],
    f"{MODEL}.channels": [[64, 128, 256], [0, 1, 1, 1], []],
    f"{MODEL}.kernels": [[3, 3, 4, 3], [3, 3, 3], [-3, 3, 3, 3], [17, 3, 3, 3]],
    f"{MODEL}.skip_kernels": [[2, 1, 1, 1], [1] * 5],
    f"{MODEL}.pool": [3, 8, 0],
    f"{MODEL}.pool_kind": ["sum", None],
    f"{MODEL}.stem": ["patches"],
    f"{MODEL}.downsample": ["blur", True],
    f"{MODEL}.activation": ["swish"],
    f"{MODEL}.block": ["bottleneck"],
    f"{MODEL}.squeeze_excite": [-1, 65],
    f"{BASE}.max_parameters": [0, -1, 5.0e6],
    f"{BASE}.seed": [-1, 2**31],
    f"{BASE}.epochs": [0, 7, 1.5],
    f"{BASE}.batch_size": [1, 0],
    f"{BASE}.precision": ["fp16", 32],
    f"{BASE}.label_smoothing": [1.0, -0.1, float("nan")],
    f"{BASE}.max_grad_norm": [0.0, float("inf")],
    f"{BASE}.ema_decay": [0.0, 1.0],
    f"{BASE}.bn_momentum": [0.0, 1.1],
    f"{BASE}.sync_batch_norm": [1, "auto"],
    f"{BASE}.initialization": ["xavier"],
    f"{BASE}.stochastic_depth": [-0.1, 1.0],
    f"{BASE}.compile": [1, "true", "max-autotune", None],
    f"{BASE}.deterministic": [0, "no"],
    f"{BASE}.optimizer.name": ["lion", None],
    f"{BASE}.optimizer.lr": [0.0, -0.1, float("inf"), float("nan"), True, "0.1"],
    f"{BASE}.optimizer.weight_decay": [-1.0e-4, float("inf")],
    f"{BASE}.optimizer.decay_norm_and_bias": [1, "yes", None],
    f"{BASE}.optimizer.momentum": [1.0, -0.1, 0],
    f"{BASE}.optimizer.nesterov": [0, "true"],
    f"{BASE}.optimizer.betas": [[0.9], [0.9, 0.99, 0.999], [0.9, 1.0]],
    f"{BASE}.optimizer.bias_lr_ratio": [0.0, -1.0, float("inf")],
    f"{BASE}.optimizer.rho": [1.0],
    f"{BASE}.schedule.name": ["cosines"],
    f"{BASE}.schedule.warmup_epochs": [-1.0, 30, 31.5],
    f"{BASE}.schedule.final_ratio": [0.0, 1.1],
    f"{BASE}.schedule.factor": [0.0, 1.0],
    f"{BASE}.schedule.step_epochs": [0],
    f"{BASE}.schedule.milestones": [[25, 15], [15, 15], [0, 5]],
    f"{BASE}.schedule.patience": [-1],
    f"{BASE}.schedule.restart_epochs": [0],
    f"{BASE}.schedule.restart_mult": [0],
    f"{BASE}.augmentation.flip": [-0.1, 1.1],
    f"{BASE}.augmentation.flip_mode": ["vertical"],
    f"{BASE}.augmentation.crop_padding": [-1, 17],
    f"{BASE}.augmentation.padding_mode": ["wrap"],
    f"{BASE}.augmentation.auto_augment": ["auto_augment"],
    f"{BASE}.augmentation.cutout": [-1, 33],
    f"{BASE}.augmentation.mix": ["both"],
    f"{BASE}.augmentation.mix_alpha": [0.0],
    f"{BASE}.augmentation.mix_share": [-0.1, 1.1],
    f"{BASE}.progressive_resizing.epochs": [-1, 31, 1.5],
    f"{BASE}.progressive_resizing.size": [7, 33],
    f"{BASE}.sam.rho": [-0.1],
    f"{BASE}.sam.adaptive": ["no"],
    f"{BASE}.selection.keep": [0.0, 1.1, None, True],
    f"{BASE}.selection.width": [0.0, 1.5],
    f"{BASE}.selection.blocks": [-1, 1.0, [1, 1, 1, 1]],
    f"{BASE}.normalization.mean": [[0.5, 0.5], [0.5, 0.5, 1.5], [0.5, 0.5, 0.5]],
    f"{BASE}.normalization.std": [[0.2, 0.2, 0.0], [0.2, 0.2, 0.2]],
    "distill.teacher": ["student"],
    "distill.alpha": [-0.1, 1.1],
    "distill.temperature": [0.0, -1.0],
    "distill.beta": [0.0],
    "distill.attention_transfer": [-1.0, None],
    "evaluate.batch_size": [0],
    "evaluate.calibration_bins": [1],
    "evaluate.mistakes": [0, 101],
    "evaluate.timing_repeats": [2],
}
CASES = [(key, value) for key, values in OUT_OF_RANGE.items() for value in values]


@pytest.mark.parametrize(("key", "value"), CASES, ids=[f"{key}={value}" for key, value in CASES])
def test_a_value_out_of_range_is_refused_by_its_key(key: str, value: Any) -> None:
    message = refusal({key: value})
    assert set(key.split(".")) <= set(re.findall(r"\w+", message))
    assert "expected: " in message


def test_the_table_of_refusals_has_every_key() -> None:
    kept_by_baseline = {key for key in dotted(DEFAULT) if not key.startswith(("train.teacher", "distill.student"))}
    assert set(OUT_OF_RANGE) == kept_by_baseline


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split.training", 10),
        ("split.seed", 2**31 - 1),
        (f"{MODEL}.pool", 1),
        (f"{BASE}.max_parameters", None),
        (f"{BASE}.max_grad_norm", 1),
        (f"{BASE}.bn_momentum", 1.0),
        (f"{BASE}.schedule.warmup_epochs", 0),
        (f"{BASE}.schedule.milestones", []),
        (f"{BASE}.augmentation.crop_padding", 16),
        ("distill.alpha", 0),
        ("distill.alpha", 1.0),
        ("distill.teacher", "baseline"),
        ("distill.teacher", "external"),
    ],
)
def test_a_value_at_the_edge_of_its_range_is_accepted(key: str, value: Any) -> None:
    assert flatten(accepted(put(DEFAULT, {key: value})))[key] is not None


def test_mean_and_std_are_accepted_together() -> None:
    params = copy.deepcopy(DEFAULT)
    params["train"]["baseline"]["normalization"] = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 1]}
    assert accepted(params).train.baseline.normalization.mean == (0.5, 0.4, 0.3)


def test_nesterov_needs_momentum() -> None:
    message = refusal({f"{BASE}.optimizer.momentum": 0.0})
    assert f"{BASE}.optimizer: nesterov = True with momentum = 0, expected: momentum > 0 or nesterov: false" in message


def test_onecycle_alone_needs_a_final_ratio() -> None:
    assert "final_ratio = 0" in refusal({f"{BASE}.schedule.final_ratio": 0})
    params = copy.deepcopy(DEFAULT)
    params["train"]["baseline"]["schedule"] |= {"name": "plateau", "final_ratio": 0}
    assert accepted(params).train.baseline.schedule.final_ratio == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"name": "step", "step_epochs": 23},
            "step_epochs = 23 after schedule.warmup_epochs = 7.5, expected: a reduction",
        ),
        (
            {"name": "multistep", "milestones": []},
            "milestones = [] with schedule.warmup_epochs = 7.5, expected: the first",
        ),
        ({"name": "multistep", "milestones": [30]}, "milestones = [30] with"),
        ({"name": "multistep", "milestones": [7, 20]}, "milestones = [7, 20] with"),
    ],
)
def test_a_schedule_that_would_not_reduce_the_learning_rate_after_its_warm_up_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    assert said in refusal({f"{BASE}.schedule.{key}": value for key, value in changes.items()})


@pytest.mark.parametrize("changes", [{"name": "step", "step_epochs": 22}, {"name": "multistep", "milestones": [8, 40]}])
def test_a_schedule_that_reduces_the_learning_rate_once_is_accepted(changes: dict[str, Any]) -> None:
    params = accepted(put(DEFAULT, {f"{BASE}.schedule.{key}": value for key, value in changes.items()}))
    assert params.train.baseline.schedule.name == changes["name"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks": [0, 3, 2, 3]}, "blocks = [0, 3, 2, 3] with downsample = stride, expected: >= 1 in each layer"),
        ({"downsample": "pool"}, "pool = 4 does not divide the last feature map of 2x2, expected: [1, 2]"),
    ],
)
def test_a_map_that_cannot_be_pooled_is_refused(changes: dict[str, Any], said: str) -> None:
    assert said in refusal({f"{MODEL}.{key}": value for key, value in changes.items()})


def test_maps_of_a_whitening_stem_are_a_pixel_smaller_and_strides_round_up() -> None:
    params = accepted(put(DEFAULT, {f"{MODEL}.stem": "whitening"}))
    assert params.train.baseline.model.feature_map_sizes() == [31, 31, 16, 8, 4]
    assert params.train.teacher.model.feature_map_sizes(24) == [24, 24, 12, 6, 3]


@pytest.mark.parametrize("key", ["stem", "downsample"])
def test_preactivation_is_for_strided_networks_with_a_learned_stem(key: str) -> None:
    value = {"stem": "whitening", "downsample": "pool"}[key]
    message = refusal({f"{MODEL}.block": "preactivation", f"{MODEL}.{key}": value, f"{MODEL}.pool": 1})
    assert "block = preactivation, expected: with stem = conv and downsample = stride" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {f"{MODEL}.pool": 2},
            "progressive_resizing.epochs = 5 with model.pool = 2, expected: 0, or a pool of the whole",
        ),
        (
            {f"{MODEL}.downsample": "pool", f"{MODEL}.pool": 2, f"{BASE}.progressive_resizing.size": 15},
            "progressive_resizing.size = 15 leaves no map to pool, expected: larger, up to 32",
        ),
    ],
)
def test_small_images_need_a_network_that_takes_them(changes: dict[str, Any], said: str) -> None:
    assert said in refusal({f"{BASE}.progressive_resizing.epochs": 5, **changes})


def test_an_alternating_flip_needs_something_to_alternate() -> None:
    settings = {f"{BASE}.augmentation.flip_mode": "alternating", f"{BASE}.augmentation.flip": 0}
    assert "flip = 0 with flip_mode = alternating, expected: between 0 and 1" in refusal(settings)


def test_stochastic_depth_needs_a_block_to_drop() -> None:
    empty = {f"{MODEL}.downsample": "pool", f"{MODEL}.blocks": [0, 0, 0, 0], f"{MODEL}.pool": 2}
    expected = "stochastic_depth = 0.1 with a model without blocks, expected: 0"
    assert expected in refusal(empty | {f"{BASE}.stochastic_depth": 0.1})
    assert accepted(put(DEFAULT, empty | {f"{BASE}.stochastic_depth": 0.0}))


def test_a_teacher_has_to_take_the_students_small_images() -> None:
    small = {"distill.student.progressive_resizing.epochs": 2, "train.teacher.model.pool": 2}
    assert "progressive_resizing.epochs = 2 with a teacher that pools 2 of 4 pixels" in refusal(small)
    assert accepted(put(DEFAULT, small | {"distill.teacher": "baseline"}))


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        (
            25,
            "[12, 6, 3, 1] pixels and a teacher's of [25, 13, 7, 4] where progressive_resizing.size is 25",
        ),
        (
            28,
            "[14, 7, 3, 1] pixels and a teacher's of [28, 14, 7, 4] where progressive_resizing.size is 28",
        ),
        (16, None),
        (32, None),
    ],
)
def test_attention_needs_the_same_pairs_of_layers_at_each_size(size: int, sides: str | None) -> None:
    student = {f"distill.student.model.{key}": value for key, value in {"downsample": "pool", "pool": 2}.items()}
    small = {"distill.student.progressive_resizing.epochs": 2, "distill.student.progressive_resizing.size": size}
    changes = {"distill.attention_transfer": 1.5, **student, **small}
    if sides is None:
        assert accepted(put(DEFAULT, changes))
        return
    assert f"distill.attention_transfer = 1.5 with layers of {sides}" in refusal(changes)
    # No image of that size occurs.
    assert accepted(put(DEFAULT, changes | {"distill.student.progressive_resizing.epochs": 0}))


def test_attention_needs_layers_of_the_same_side() -> None:
    pooled = {"stem": "whitening", "downsample": "pool", "pool": 1}
    changes = {"distill.attention_transfer": 1.5} | {
        f"train.teacher.model.{key}": value for key, value in pooled.items()
    }
    said = "attention_transfer = 1.5 with layers of [32, 16, 8, 4] pixels and a teacher's of [15, 7, 3, 1], expected: 0"
    assert said in refusal(changes)
    assert accepted(put(DEFAULT, changes | {"distill.teacher": "baseline"}))
