"""The study's questions, which are small YAML files, and the DVC experiments that answer them.

A question names the model that it is about, and lists runs by the values that differ from a preset. All questions share
the experiment ``reference``, a run of the preset without changes.
"""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StringConstraints, model_validator

from leanresnet.config.load import did_you_mean, read_mapping, validate
from leanresnet.config.schema import Loose, Params, Section, Seed, flatten
from leanresnet.errors import ConfigError
from leanresnet.scaffold.presets import load_preset, merge

REFERENCE = "reference"
# DVC stores an experiment as a git reference, of which its name is a part.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$")]
Trained = Literal["baseline", "student"]


class Scale(NamedTuple):
    """The preset that the runs start from, and the number of runs at the same time."""

    preset: str
    jobs: int


# At the scales cpu and long, two runs share the cores, because networks of this size gain little from more than half of
# them.
SCALES = {"cpu": Scale("paper-cpu", 2), "gpu": Scale("paper", 1), "long": Scale("long-cpu", 2)}
ScaleName = Literal["cpu", "gpu", "long"]


class Run(Section):
    """A run of a question, or one for each of its seeds. Values that it does not change are those of the preset.

    A baseline is trained on the labels alone. A student is taught by the model ``teacher``, or by those of
    `learns_from`.
    """

    name: Name = Field(description="Name of the experiment, after the name of the question.")
    scale: ScaleName | None = Field(None, description="The only scale at which it runs.")
    model: Trained | None = Field(None, description="The model that is trained, if it is not the question's.")
    seeds: Annotated[tuple[Seed, ...], Loose] = Field(
        (), description="Seeds; the name of an experiment ends with its seed."
    )
    learns_from: Annotated[tuple[str, ...], Loose] = Field(
        (), description="Earlier experiments whose models teach; several models teach as an ensemble."
    )
    recipe: dict[str, Any] = Field({}, description="Values of the model's recipe that differ from the preset.")
    distill: dict[str, Any] = Field({}, description="Other values of the section distill that differ from the preset.")


class Question(Section):
    """The content of a file in experiments/."""

    title: Annotated[str, StringConstraints(pattern=r"\?$")] = Field(description="The question in one sentence.")
    model: Trained = Field(description="The model that it is about.")
    scales: Annotated[tuple[ScaleName, ...], Field(min_length=1), Loose] = Field(
        ("cpu", "gpu"), description="The scales at which it can be asked."
    )
    runs: Annotated[tuple[Run, ...], Field(min_length=1), Loose] = Field(
        description="The runs in the order of the queue."
    )

    @model_validator(mode="after")
    def _only_students_have_teachers(self) -> "Question":
        for run in self.runs:
            if run.learns_from and (run.model or self.model) != "student":
                raise ValueError(f"{run.name} has learns_from with model = baseline, expected: model = student")
        return self


@dataclass(frozen=True)
class Experiment:
    """A DVC experiment.

    Attributes:
        name: its name in DVC.
        question: name of its question; for the reference, `REFERENCE`.
        model: the model that is trained, evaluated and compared.
        values: the values that differ from the preset, nested as in params.yaml.
        learns_from: names of the experiments whose models teach it, as models/external.
    """

    name: str
    question: str
    model: str
    values: dict[str, Any]
    learns_from: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """The stage that DVC runs, together with the stages before it."""
        return f"evaluate@{self.model}"

    @property
    def overrides(self) -> list[str]:
        """The values in the form of ``dvc exp run --set-param``, such as ``train.baseline.optimizer.lr=0.1``."""
        return list(_overrides(self.values, ""))


def question_names(folder: Path) -> list[str]:
    """Return the names of the questions in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_question(path: Path) -> Question:
    """Read and validate a question's file.

    Raises:
        ConfigError: if it is not a question; the message names the file, the key, the value and what is expected.
        StorageError: if the file cannot be read.
    """
    return validate(read_mapping(path, Question), str(path), Question)


def load_experiments(folder: Path, scale: str, presets: Path) -> dict[str, Experiment]:
    """Return the experiments of all questions of a scale by name, the reference first.

    Args:
        folder: the folder of the questions.
        scale: a key of `SCALES`.
        presets: the folder of the presets.

    Raises:
        ConfigError: if a question is not valid, the values of a run are not valid in the preset, two experiments have
            the same name, or an experiment learns from one that does not exist.
        StorageError: if a file cannot be read.
    """
    base = load_preset(SCALES[scale].preset, presets).params.model_dump(mode="json")
    found = {REFERENCE: Experiment(REFERENCE, REFERENCE, "baseline", _values("baseline", Run(name=REFERENCE), None))}
    for name in question_names(folder):
        path = folder / f"{name}.yaml"
        question = load_question(path)
        for each in _experiments(name, question, scale) if scale in question.scales else ():
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
    """Return the reference and the experiments of these questions, in the order in which they are queued.

    Args:
        experiments: all experiments by name.
        questions: names of the questions, in the order in which they run.
        known: names of the experiments that have run.

    Raises:
        ConfigError: if a question has no experiments, because it is one of another scale, or an experiment learns from
            one that has not run and does not come before it.
    """
    for name in questions:
        if all(each.question != name for each in experiments.values()):
            raise ConfigError(f"question = {name!r}: no runs at this scale, expected: another --scale")
    chosen = [each for name in (REFERENCE, *questions) for each in experiments.values() if each.question == name]
    asked = set(known)
    for each in chosen:
        for name in each.learns_from:
            if name not in asked:
                before = experiments[name].question
                raise ConfigError(f"{each.name}: learns from {name}, expected: with or after the question {before}")
        asked.add(each.name)
    return chosen


def check_values(where: str, found: Params, expected: Params) -> None:
    """Check that a run has the values that its experiment stands for; its data may come from elsewhere.

    Args:
        where: origin of `found` for the error message.

    Raises:
        ConfigError: if a value outside of the section download is another.
    """
    values = flatten(found)
    for key, value in flatten(expected).items():
        if values[key] != value and not key.startswith("download."):
            raise ConfigError(f"{where}: {key} = {values[key]}, expected: {value}")


def outdated(
    experiments: Sequence[Experiment], known: Collection[str], base: Params, ran: Callable[[str], Params | None]
) -> dict[str, str]:
    """Return the experiments that have run with other values than their present ones, or whose teacher runs again.

    Args:
        experiments: in the order of the queue.
        known: names of the experiments that have run.
        base: the params of the scale's preset.
        ran: returns the params with which an experiment ran, or None if they are not known.

    Returns:
        The reason of each by its name.
    """
    found: dict[str, str] = {}
    for each in (each for each in experiments if each.name in known):
        where = f"the experiment {each.name}, which has run"
        again = [name for name in each.learns_from if name not in known or name in found]
        if again:
            found[each.name] = f"{where}: {again[0]} taught it and runs again"
            continue
        try:
            params = ran(each.name)
            if params is not None:
                check_values(where, params, validate(merge(base.model_dump(mode="json"), each.values), where, Params))
        except ConfigError as error:
            found[each.name] = str(error)
    return found


def check_names(names: Sequence[str], folder: Path) -> None:
    """Raise ConfigError if one of `names` is not a question in `folder`."""
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
        # With another teacher, evaluating the baseline would train that teacher.
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
    return f"{name!r}: unknown{did_you_mean(name, known)}, expected: {', '.join(known)}"
