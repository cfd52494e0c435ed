"""The descriptions of the keys of params.yaml, made from the schema: as comments, as a table and as a JSON schema."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leanresnet.config.documents import write_yaml
from leanresnet.config.load import did_you_mean
from leanresnet.config.schema import Params, Section
from leanresnet.errors import ConfigError
from leanresnet.scaffold.presets import RECIPES

# The column in which comments start in params.yaml. DVC keeps it when it changes a value.
COLUMN = 36
SCHEMA_FILE = "params.schema.json"
# The recipe that carries the comments in params.yaml, and those that refer to it.
DESCRIBED, *REFERRING = RECIPES.values()
REPEATED = tuple(f"{each}." for each in REFERRING)


@dataclass(frozen=True)
class Key:
    """A key of params.yaml: its dotted path, its valid values in words, and its meaning."""

    path: str
    values: str
    meaning: str

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


def described_keys() -> list[Key]:
    """Return all sections and keys, in the order of params.yaml."""
    schema = Params.model_json_schema()
    return list(_keys(Params, "", {**schema["$defs"], Params.__name__: schema}))


def render(params: Params, title: str) -> str:
    """Return the text of a complete params.yaml with comments on its keys.

    The layout is the one that DVC's own writer keeps, so that ``dvc exp run --set-param`` changes one line: a list has
    one item per line, and null is empty. Of the three recipes, only the first has comments on its keys.

    Args:
        title: the purpose of the values, one or more lines without ``#``.
    """
    comments = {key.path: _comment(key) for key in described_keys()}
    lines = [*(f"# {line}".rstrip() for line in title.splitlines()), *HEADER.splitlines(), ""]
    place: list[str] = []
    for written in write_yaml(params.model_dump(mode="json")).splitlines():
        line = written.removesuffix(" null")
        name, colon, _ = line.strip().partition(":")
        if line.lstrip().startswith("- ") or not colon:
            lines.append(line)
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        place = [*place[:depth], name]
        path = ".".join(place)
        comment = comments[path]
        if path in REFERRING:
            comment += f" Its keys are described under {DESCRIBED}."
        elif path.startswith(REPEATED):
            comment = ""
        lines.append(f"{line:{COLUMN - 1}} # {comment}" if comment else line)
    return "\n".join(lines) + "\n"


def _comment(key: Key) -> str:
    """Return the meaning of a key and its valid values, except for values whose form is obvious."""
    values = re.sub(r"integer (?=[><])|number (?=[><])|^list of |", "", key.values)
    return key.meaning if not values or values in UNSAID else f"{key.meaning} [{values}]"


UNSAID = {"32 hexadecimal digits", "64 hexadecimal digits", "https address"}
HEADER = f"""\
#
# Every value of the pipeline, one section a stage. Change one, and `dvc repro` runs the stages that it affects.
# `leanresnet check` validates the file, and `leanresnet params KEY` explains a key. A key without a value is null.
# yaml-language-server: $schema={SCHEMA_FILE}
"""


def explain(name: str | None) -> str:
    """Return a line of text for each key that `name` stands for.

    Args:
        name: a key, a section, or a part of a path such as ``optimizer.lr``; None for all keys.

    Raises:
        ConfigError: if there is no such key.
    """
    everything = described_keys()
    found = [key for key in everything if f"{key.path}.".startswith(f"{name}.")]
    if not found:
        once = [key for key in everything if not key.path.startswith(REPEATED)]
        found = [key for key in once if name is None or f".{name}." in f".{key.path}."]
    if not found:
        names = [part for key in everything for part in (key.path, key.name)]
        hint = did_you_mean(str(name), names)
        raise ConfigError(f"{name}: unknown key{hint}, expected: a key of params.yaml, such as train.baseline.epochs")
    return "\n".join(f"{key.path}: {key.meaning}{f' [{key.values}]' if key.values else ''}" for key in found)


def table() -> str:
    """Return the text of docs/params.md, a table in Markdown with each key once."""
    lines = [TABLE_HEADER]
    for key in described_keys():
        if key.path.startswith(REPEATED):
            continue
        meaning = key.meaning
        if key.path in REFERRING:
            meaning += f" It has the keys of `{DESCRIBED}`."
        if "." not in key.path:
            lines += ["", f"## {key.path}", "", meaning, "", "| key | values | meaning |", "| --- | --- | --- |"]
        else:
            cells = (cell.replace("|", "\\|") for cell in (f"`{key.path}`", key.values, meaning))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


TABLE_HEADER = """\
# The keys of params.yaml

Generated from `src/leanresnet/config/schema.py` by `make docs`. A recipe stands in `params.yaml` three times, as
`train.baseline`, `train.teacher` and `distill.student`; its keys are listed once, under `train.baseline`."""


def json_schema() -> str:
    """Return a JSON schema of params.yaml, by which an editor completes keys and shows their meaning."""
    return json.dumps(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **Params.model_json_schema()}, indent=1
    )


def _keys(section: type[Section], prefix: str, definitions: dict[str, Any]) -> Iterator[Key]:
    properties = definitions[section.__name__]["properties"]
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield Key(path, "", field.description or "")
            yield from _keys(annotation, f"{path}.", definitions)
        else:
            yield Key(path, _values(properties[name]), field.description or "")


def _values(schema: dict[str, Any]) -> str:
    """Return the values that a JSON schema accepts, in words."""
    if "anyOf" in schema:
        kinds = [_values(each) for each in schema["anyOf"]]
        return (" | " if any(" | " in kind for kind in kinds) else " or ").join(kinds)
    if "enum" in schema:
        return " | ".join(schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    match schema["type"]:
        case "null":
            return "null"
        case "boolean":
            return "true | false"
        case "string":
            return {"^[0-9a-f]{32}$": "32 hexadecimal digits", "^[0-9a-f]{64}$": "64 hexadecimal digits"}.get(
                schema.get("pattern", ""), "https address"
            )
        case "array":
            items = schema.get("prefixItems") or [schema["items"]]
            count = f"{len(items)} of " if "prefixItems" in schema else "list of "
            return count + _values(items[0])
    bounds = []
    for word, bound in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<")):
        if word in schema:
            value = schema[word]
            bounds.append(f"{bound} {'2^31' if value == 2**31 else f'{value:g}'}")
    return f"{schema['type']} {', '.join(bounds)}".strip()
