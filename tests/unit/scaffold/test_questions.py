"""Questions of the study: what a file may say, the experiments that it asks for, and their order."""

from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from imports import ROOT

from leanresnet.errors import ConfigError
from leanresnet.scaffold.presets import merge
from leanresnet.scaffold.questions import (
    REFERENCE,
    Experiment,
    check_names,
    choose,
    load_experiments,
    load_question,
    question_names,
)

HEAD = "title: Does it?\nmodel: student\nruns:\n"
SIZES = """
title: Which of the sizes?
model: baseline
runs:
  - {name: large, scale: gpu, recipe: {epochs: 7}}
  - {name: small, recipe: {epochs: 2}}
"""
TAUGHT = f"""{HEAD}
  - {{name: one, seeds: [3, 4], learns_from: [sizes-small], distill: {{alpha: 0.5}}}}
  - {{name: alone, model: baseline, recipe: {{seed: 9}}}}
"""


def write(folder: Path, **questions: str) -> Path:
    for name, text in questions.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def load(folder: Path, scale: str = "cpu") -> dict[str, Experiment]:
    return load_experiments(folder, scale, ROOT / "presets")


def test_runs_become_experiments_with_the_values_in_which_they_differ(tmp_path: Path) -> None:
    found = load(write(tmp_path, sizes=SIZES, taught=TAUGHT))
    assert list(found) == [REFERENCE, "sizes-small", "taught-one-3", "taught-one-4", "taught-alone"]
    assert found[REFERENCE].overrides == ["distill.teacher=baseline"]
    assert found["sizes-small"].overrides == ["distill.teacher=baseline", "train.baseline.epochs=2"]
    taught = found["taught-one-4"]
    assert (taught.target, taught.learns_from) == ("evaluate@student", ("sizes-small",))
    assert taught.overrides == ["distill.teacher=external", "distill.alpha=0.5", "distill.student.seed=4"]
    alone = found["taught-alone"]
    assert (alone.target, alone.values["distill"]) == ("evaluate@baseline", {"teacher": "baseline"})


def test_a_run_of_one_scale_is_not_asked_at_the_other(tmp_path: Path) -> None:
    assert "sizes-large" in load(write(tmp_path, sizes=SIZES), "gpu")


def test_dvc_reads_the_overrides_as_the_values(tmp_path: Path) -> None:
    values = {"a": {"text": "sgd", "list": [1, 2], "none": None, "flag": True, "small": 1e-05, "whole": 8.0}}
    before = {"a": dict.fromkeys([*values["a"], "kept"], 1)}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(before))
    apply_overrides(str(tmp_path / "params.yaml"), Experiment("x", "x", "baseline", values).overrides)
    from leanresnet.config.documents import read_yaml

    assert read_yaml((tmp_path / "params.yaml").read_text()) == merge(before, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", r"\[1\] at the top level, expected: a mapping with the keys title, model, scales, runs"),
        (f"{HEAD}  - {{nam: a}}\n", r"runs\.0\.nam = 'a': unknown key \(did you mean name\?\), expected: name, scale"),
        (f"{HEAD}  - {{recipe: {{}}}}\n", r"runs\.0\.name: missing, expected: a value$"),
        (f"{HEAD}  - {{name: a b}}\n", r"runs\.0\.name = 'a b': expected: "),
        (f"{HEAD}  - {{name: a, scale: cpus}}\n", r"runs\.0\.scale = 'cpus': expected: 'cpu', 'gpu' or 'long' \(did"),
        (f"{HEAD}  - {{name: a, seeds: [-1]}}\n", r"runs\.0\.seeds\.0 = -1: expected: "),
        (f"{HEAD}  []\n", r"runs = \[\]: expected: "),
        (HEAD.replace("?", ".") + "  - {name: a}\n", r"title = 'Does it\.': expected: "),
        (f"{HEAD}  - {{name: a, model: baseline, learns_from: [b]}}\n", r"a has learns_from with model = baseline"),
    ],
)
def test_a_mistake_in_a_question_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"wrong\.yaml: " + message) as caught:
        load_question(write(tmp_path, wrong=text) / "wrong.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}  - {{name: a}}\n  - {{name: a}}\n", r"a second experiment wrong-a, expected: each name once"),
        (
            f"{HEAD}  - {{name: a, recipe: {{epoch: 2}}}}\n",
            r"wrong-a: distill\.student\.epoch = 2: unknown key \(did you mean epochs\?\)",
        ),
        (f"{HEAD}  - {{name: a, distill: {{alpha: 2.0}}}}\n", r"wrong-a: distill\.alpha = 2\.0: expected: "),
        (
            f"{HEAD}  - {{name: a, learns_from: [referense]}}\n",
            r"learns_from = 'referense': unknown \(did you mean ref",
        ),
    ],
)
def test_a_mistake_in_the_values_of_a_run_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"wrong\.yaml: " + message) as caught:
        load(write(tmp_path, wrong=text))
    assert "\n" not in str(caught.value)


def test_an_unknown_question_is_named_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, sizes=SIZES, taught=TAUGHT)
    assert question_names(tmp_path) == ["sizes", "taught"]
    check_names(["taught", "sizes"], tmp_path)
    with pytest.raises(ConfigError, match=r"question = 'size': unknown \(did you mean sizes\?\), expected: sizes, ta"):
        check_names(["size"], tmp_path)


def test_what_teaches_has_run_or_is_asked_for_before(tmp_path: Path) -> None:
    found = load(write(tmp_path, sizes=SIZES, taught=TAUGHT))
    assert [each.name for each in choose(found, ["sizes"], [])] == [REFERENCE, "sizes-small"]
    assert len(choose(found, ["sizes", "taught"], [])) == len(choose(found, ["taught", "sizes"], ["sizes-small"])) == 5
    message = r"taught-one-3: learns from sizes-small, expected: with or after the question sizes"
    for questions in (["taught"], ["taught", "sizes"]):
        with pytest.raises(ConfigError, match=message):
            choose(found, questions, [REFERENCE])


def test_a_question_is_asked_at_its_scales(tmp_path: Path) -> None:
    text = SIZES.replace("model: baseline", "model: baseline\nscales: [gpu, long]")
    write(tmp_path, sizes=text)
    assert list(load(tmp_path, "cpu")) == [REFERENCE]
    assert list(load(tmp_path, "long")) == [REFERENCE, "sizes-small"]
    assert list(load(tmp_path, "gpu")) == [REFERENCE, "sizes-large", "sizes-small"]
    with pytest.raises(ConfigError, match=r"^question = 'sizes': no runs at this scale, expected: another --scale$"):
        choose(load(tmp_path, "cpu"), ["sizes"], [])
