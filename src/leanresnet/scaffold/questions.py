"""The study's questions: small YAML files, and the DVC experiments that they ask for.

A question names the model that it is about and the runs that answer it, each by what differs from a preset. All
questions share one run in which nothing differs, the experiment ``reference``.
"""

import difflib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StringConstraints, model_validator

from leanresnet.config.load import read_mapping, validate
from leanresnet.config.schema import Loose, Params, Section, Seed
from leanresnet.errors import ConfigError
from leanresnet.scaffold.presets import load_preset, merge

REFERENCE = "reference"
# A part of a git reference, as which DVC keeps an experiment.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$")]
Taught = Literal["baseline", "student"]


class Scale(NamedTuple):
    """The preset from which the runs differ, and how many of them run at once."""

    preset: str
    jobs: int


# Two at once with half of the cores each, for so small a network gains little from more.
SCALES = {"cpu": Scale("paper-cpu", 2), "gpu": Scale("paper", 1)}


class Run(Section):
    """A training, or one for each seed; what is left out is as in the preset.

    A baseline learns from its labels alone, and a student from the model ``teacher``, or from those of `learns_from`.
    """

    name: Name = Field(description="What the experiment is called, after the question.")
    scale: Literal["cpu", "gpu"] | None = Field(None, description="The only scale at which it is asked.")
    model: Taught | None = Field(None, description="The model that is trained, where it is not the question's.")
    seeds: Annotated[tuple[Seed, ...], Loose] = Field((), description="Seeds; the experiment's name ends in its own.")
    learns_from: Annotated[tuple[str, ...], Loose] = Field(
        (), description="Experiments that were asked before and whose models teach; of several, their ensemble."
    )
    recipe: dict[str, Any] = Field({}, description="What differs in the model's recipe.")
    distill: dict[str, Any] = Field({}, description="What else differs in the section distill.")


class Question(Section):
    title: Annotated[str, StringConstraints(pattern=r"\?$")] = Field(description="The question in one sentence.")
    model: Taught = Field(description="The model that it is about.")
    runs: Annotated[tuple[Run, ...], Field(min_length=1), Loose] = Field(description="In the order of the queue.")

    @model_validator(mode="after")
    def _has_who_learns(self) -> "Question":
        for run in self.runs:
            if run.learns_from and (run.model or self.model) != "student":
                raise ValueError(f"{run.name} has learns_from with model = baseline, expected: model = student")
        return self


@dataclass(frozen=True)
class Experiment:
    """A DVC experiment.

    Attributes:
        question: the one that asks for it; of the reference, that one's name.
        model: the model that is trained, evaluated and compared.
        values: what differs from the preset, as in params.yaml.
        learns_from: the experiments whose models teach as models/external.
    """

    name: str
    question: str
    model: str
    values: dict[str, Any]
    learns_from: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """DVC's stage; those before it are run too."""
        return f"evaluate@{self.model}"

    @property
    def overrides(self) -> list[str]:
        """`values` as ``dvc exp run --set-param`` takes them: ``train.baseline.optimizer.lr=0.1``."""
        return list(_overrides(self.values, ""))


def question_names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_question(path: Path) -> Question:
    """Read and validate a question's file.

    Raises:
        ConfigError: naming the file, the key, the value and what is expected, in one line.
        StorageError: the file cannot be read.
    """
    return validate(read_mapping(path, Question), str(path), Question)


def load_experiments(folder: Path, scale: str, presets: Path) -> dict[str, Experiment]:
    """The experiments of all questions at a scale by name, the reference first, each one's values valid in its preset.

    Raises:
        ConfigError: a question, or a run's values, are not valid; two experiments have one name, or one learns from
            an experiment that no question asks for.
        StorageError: a file cannot be read.
    """
    base = load_preset(SCALES[scale].preset, presets).params.model_dump(mode="json")
    found = {REFERENCE: Experiment(REFERENCE, REFERENCE, "baseline", _values("baseline", Run(name=REFERENCE), None))}
    for question in question_names(folder):
        path = folder / f"{question}.yaml"
        for each in _experiments(question, load_question(path), scale):
            if each.name in found:
                raise ConfigError(f"{path}: a second experiment {each.name}, expected: each name once")
            validate(merge(base, each.values), f"{path}: {each.name}", Params)
            found[each.name] = each
    for each in found.values():
        for name in each.learns_from:
            if name not in found:
                raise ConfigError(f"{folder / each.question}.yaml: learns_from = {_unknown(name, list(found))}")
    return found


def choose(experiments: dict[str, Experiment], questions: Sequence[str], known: Collection[str]) -> list[Experiment]:
    """Those that these questions ask for, after the reference, in the order in which they are queued.

    Args:
        questions: names of questions, in their order.
        known: the experiments that have run.

    Raises:
        ConfigError: one learns from an experiment that has neither run nor is asked for before it.
    """
    chosen = [each for name in (REFERENCE, *questions) for each in experiments.values() if each.question == name]
    asked = set(known)
    for each in chosen:
        for name in each.learns_from:
            if name not in asked:
                before = experiments[name].question
                raise ConfigError(f"{each.name}: learns from {name}, expected: with or after the question {before}")
        asked.add(each.name)
    return chosen


def check_names(names: Sequence[str], folder: Path) -> None:
    """Raises ConfigError where one of `names` is no question of `folder`."""
    known = question_names(folder)
    for name in names:
        if name not in known:
            raise ConfigError(f"question = {_unknown(name, known)}")


def _experiments(name: str, question: Question, scale: str) -> Iterator[Experiment]:
    for run in question.runs:
        if run.scale in (None, scale):
            model = run.model or question.model
            for seed in run.seeds or (None,):
                full = "-".join([name, run.name] + ([] if seed is None else [str(seed)]))
                yield Experiment(full, name, model, _values(model, run, seed), run.learns_from)


def _values(model: str, run: Run, seed: int | None) -> dict[str, Any]:
    recipe = run.recipe if seed is None else run.recipe | {"seed": seed}
    if model == "baseline":
        # A baseline that asks for a teacher would train one.
        return {"distill": {"teacher": "baseline", **run.distill}, "train": {"baseline": recipe}}
    teacher = "external" if run.learns_from else "teacher"
    return {"distill": {"teacher": teacher, **run.distill, "student": recipe}}


def _overrides(values: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _overrides(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            yield f"{prefix}{key}={text}"


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{name!r}: unknown{hint}, expected: {', '.join(known)}"
