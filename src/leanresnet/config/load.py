"""Readers of params.yaml and other sections; the first mistake becomes an error message of one line."""

import difflib
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from leanresnet.config.documents import read_yaml
from leanresnet.config.schema import Params, Section
from leanresnet.errors import ConfigError, DataError
from leanresnet.files import load_json, not_read

S = TypeVar("S", bound=Section)

# What pydantic expects, by its error, in the words of YAML instead of Python's.
YAML_WORDS = {"bool_type": "true or false", "model_type": "a section with keys below it", "tuple_type": "a list"}


def load_params(path: Path) -> Params:
    """Read and validate a params file.

    Raises:
        ConfigError: if a value is not valid; the message names the file, the key, the value and what is expected.
        StorageError: if the file cannot be read.
    """
    return validate(read_mapping(path), str(path), Params)


def read_mapping(path: Path, kind: type[Section] = Params) -> dict[str, Any]:
    """Read a file that holds a YAML mapping.

    Args:
        kind: the section whose keys are named in the error if the file does not hold a mapping.

    Raises:
        ConfigError: if the file does not hold a YAML mapping.
        StorageError: if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise not_read(path, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}), expected: YAML") from error
    return parse_mapping(text, str(path), kind)


def parse_mapping(text: str, where: str, kind: type[Section] = Params) -> dict[str, Any]:
    """Return the YAML mapping of a text that comes from `where`; see `read_mapping`."""
    try:
        raw = read_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(raw, dict):
        what = f"{'sections' if kind is Params else 'keys'} {', '.join(kind.model_fields)}"
        wrong = "empty" if raw is None else f"{_short(raw)} at the top level"
        raise ConfigError(f"{where}: {wrong}, expected: a mapping with the {what}")
    return raw


def validate(values: dict[str, Any], where: str, kind: type[S]) -> S:
    """Convert the values of a file to a typed section.

    Args:
        where: the file for error messages.

    Raises:
        ConfigError: if a value is not valid; the message names the key, the value and what is expected.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error, kind)}") from error


def load_section(path: Path, kind: type[S], what: str) -> S:
    """Read a JSON file that holds a section.

    Args:
        kind: the class of the section.
        what: the expected content for error messages, such as "a model's description".

    Raises:
        StorageError: if the file cannot be read or is not JSON.
        DataError: if it does not hold such a section; the message names the first mistake.
    """
    content = load_json(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the top level"
        mistake = " ".join(f"{place}: {first['msg']}".split())[:200]
        raise DataError(f"{path}: not {what} ({mistake}), expected: a file that this version wrote") from error


def _explain(error: ValidationError, kind: type[Section]) -> str:
    """Return the first mistake as `key = value: what is expected`."""
    # An unknown key is often a misspelled one, so it is named before the key that is missing because of it.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    loc, value, message = first["loc"], first["input"], _expected(first)
    fields = _fields_at(loc[:-1], kind)
    if loc and isinstance(loc[-1], str) and not fields:
        # A key that takes values of two kinds has an error for each of them, whose path ends in the kind.
        loc = loc[:-1]
        message = " or ".join(_expected(each) for each in error.errors() if each["loc"][:-1] == loc)
    key = " ".join(".".join(str(part) for part in loc).split())
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(str(first["loc"][-1]), fields)
        return f"{key} = {_short(value)}: unknown key{hint}, expected: {', '.join(fields)}"
    if first["type"] == "missing" and isinstance(loc[-1], int):
        missing = [each for each in error.errors() if each["type"] == "missing" and each["loc"][:-1] == loc[:-1]]
        return f"{key.rpartition('.')[0]} = {_short(value)}: expected: {len(value) + len(missing)} values"
    if first["type"] == "missing":
        complete = " (presets/default.yaml has every key)" if kind is Params else ""
        return f"{key}: missing, expected: a value{complete}"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    return f"{key} = {_short(value)}: expected: {message}"


def _expected(error: ErrorDetails) -> str:
    value, message = error["input"], error["msg"].removeprefix("Input should be ")
    if error["type"] in YAML_WORDS:
        return YAML_WORDS[error["type"]]
    if error["type"] == "too_long":
        return f"at most {error['ctx']['max_length']} values"
    if error["type"] == "literal_error" and isinstance(value, str):
        message += did_you_mean(value, message.replace("'", "").replace(" or ", ", ").split(", "))
    if error["type"] == "int_type" and isinstance(value, float) and value.is_integer():
        message += f", {int(value)}"
    return message


def did_you_mean(name: str, options: Sequence[str]) -> str:
    """Return a hint at the option that is similar to `name`, or an empty text."""
    near = difflib.get_close_matches(name, options, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _fields_at(loc: tuple[int | str, ...], kind: type[Section]) -> list[str]:
    """Return the keys of the section at the path `loc` within a section of this kind; none if it is not a section."""
    section: type[BaseModel] = kind
    for part in loc:
        # A number is the index of an item in a list, whose items are sections of the kind found so far.
        if isinstance(part, int):
            continue
        annotation = section.model_fields[str(part)].annotation
        candidates = [annotation, *get_args(annotation)]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not found:
            return []
        section = found[0]
    return list(section.model_fields)


def _short(value: object) -> str:
    # reprlib limits the work, because a few lines with YAML aliases can stand for a huge value.
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxlong, shown.maxother = 2, 60, 60, 60
    text = " ".join(shown.repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
