"""The keys of params.yaml: each described once, in the schema, and shown alike everywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from imports import ROOT

from leanresnet.errors import ConfigError
from leanresnet.scaffold import reference
from leanresnet.scaffold.presets import load_preset

PRESET = load_preset("default", ROOT / "presets")
TEXT = reference.render(PRESET.params, PRESET.title)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def another(value: Any) -> str:
    """Another value of its kind, as ``--set-param`` takes it."""
    if isinstance(value, bool):
        return str(not value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(str, [*value[:-1], 7]))}]"
    return "other" if isinstance(value, str) else "0.5" if value is None else str(value + 1)


VALUES = flat(yaml.safe_load(TEXT))
STRIDE = 4


@pytest.mark.parametrize("start", range(STRIDE))
def test_one_value_that_dvc_sets_is_one_changed_line(start: int, tmp_path: Path) -> None:
    """By DVC's own function, which `dvc exp run --set-param` calls; each key of the three recipes and all others.

    A call takes a while, so each sets every fourth key: as many lines change, none of them between those.
    """
    keys = list(VALUES)[start::STRIDE]
    file = tmp_path / "params.yaml"
    file.write_text(TEXT)
    apply_overrides(str(file), [f"{key}={another(VALUES[key])}" for key in keys])
    written = file.read_text()
    lines = [(old, new) for old, new in zip(TEXT.splitlines(), written.splitlines(), strict=True) if old != new]
    assert len(lines) == len(keys), lines
    after = flat(yaml.safe_load(written))
    assert [key for key in VALUES if after[key] != VALUES[key]] == keys
    assert list(after) == list(VALUES)
    for key, (old, new) in zip(keys, lines, strict=True):
        # A list has a line for each item.
        name = "- " if isinstance(VALUES[key], list) else f"{key.rpartition('.')[2]}:"
        assert old.lstrip().startswith(name), (key, old)
        assert new.lstrip().startswith(name), (key, new)
        assert old.partition("#")[1:] == new.partition("#")[1:], (key, new)


def test_what_describes_the_keys_is_up_to_date() -> None:
    """`make docs` renews both."""
    assert (ROOT / "params.schema.json").read_text() == reference.json_schema()
    assert (ROOT / "docs" / "params.md").read_text() == reference.table()


def test_every_key_has_a_meaning_and_its_values() -> None:
    keys = {key.path: key for key in reference.described_keys()}
    assert set(VALUES) <= set(keys)
    assert [path for path, key in keys.items() if not key.meaning.endswith(".")] == []
    assert [path for path in VALUES if not keys[path].values] == []


def test_the_first_recipe_carries_the_comments_and_the_others_refer_to_it() -> None:
    lines = TEXT.splitlines()
    heads = ("  baseline:", "  teacher:", "distill:", "  student:")
    start, teacher, distill, student = (
        next(number for number, line in enumerate(lines) if line.startswith(head) and line.endswith("."))
        for head in heads
    )
    is_key = [not line.lstrip().startswith("- ") for line in lines]
    assert all("# " in line for line, key in zip(lines[start:teacher], is_key[start:teacher], strict=True) if key)
    assert all("described under train.baseline." in lines[place] for place in (teacher, student))
    assert not any("#" in line for line in lines[teacher + 1 : distill])


def test_an_editor_finds_the_schema_and_its_ranges() -> None:
    assert f"# yaml-language-server: $schema={reference.SCHEMA_FILE}" in TEXT
    schema = json.loads(reference.json_schema())
    rate = schema["$defs"]["Optimizer"]["properties"]["lr"]
    assert rate["exclusiveMinimum"] == 0
    assert rate["description"].startswith("Peak learning rate")
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("name", ["train.baseline.optimizer.lr", "optimizer.lr", "lr"])
def test_a_key_is_explained_by_its_path_or_the_end_of_it(name: str) -> None:
    explained = reference.explain(name)
    assert explained.startswith("train.baseline.optimizer.lr: Peak learning rate")
    assert explained.endswith("[number > 0]")
    assert "\n" not in explained


def test_words_and_kinds_among_the_values_of_a_key_are_told_apart() -> None:
    assert reference.explain("train.baseline.compile").endswith("[true | false | reduce-overhead]")
    assert reference.explain("train.baseline.max_grad_norm").endswith("[number > 0 or null]")


def test_a_section_is_explained_key_by_key_and_none_means_all() -> None:
    assert len(reference.explain("evaluate").splitlines()) == 5
    assert reference.explain("distill.student.epochs").startswith("distill.student.epochs: ")
    everything = reference.explain(None)
    assert "train.baseline.epochs" in everything
    assert "train.teacher.epochs" not in everything


def test_an_unknown_key_is_one_line_with_the_nearest_one() -> None:
    for wrong, near in (("max_parameter", "max_parameters"), ("train.baseline.sma", "train.baseline.sam")):
        with pytest.raises(ConfigError, match=rf"{wrong}: unknown key \(did you mean {near}\?\), expected: "):
            reference.explain(wrong)
    with pytest.raises(ConfigError, match=r"optimiser: unknown key \(did you mean optimizer\?\), expected: "):
        reference.explain("optimiser")
