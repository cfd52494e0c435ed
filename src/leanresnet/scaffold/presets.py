"""Presets: small YAML files, each of which holds only the values that differ from its base, by default `default`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanresnet.config.load import did_you_mean, read_mapping, validate
from leanresnet.config.schema import Params
from leanresnet.errors import ConfigError

DEFAULT = "default"
# The keys of the recipes, by the names of their models.
RECIPES = {"baseline": "train.baseline", "teacher": "train.teacher", "student": "distill.student"}


@dataclass(frozen=True)
class Preset:
    """A complete preset.

    Attributes:
        name: the name of its file without the suffix.
        params: all values.
        title: the comment on top of its file, which says what the preset is for.
    """

    name: str
    params: Params
    title: str


def names(folder: Path) -> list[str]:
    """Return the names of the presets in a folder, `default` first."""
    return [DEFAULT, *sorted(path.stem for path in folder.glob("*.yaml") if path.stem != DEFAULT)]


def load_preset(name: str, folder: Path) -> Preset:
    """Merge a preset onto the one that its key `base` names, by default onto `default`.

    Keys under `recipe` apply to all three recipes, `train.baseline`, `train.teacher` and `distill.student`; keys under
    one of these take precedence. A list is replaced as a whole.

    Raises:
        ConfigError: if there is no such preset, a preset is its own base, or the merged values are not valid.
        StorageError: if a file cannot be read.
    """
    path = folder / f"{name}.yaml"
    values = _merged(name, folder, ())
    return Preset(name, validate(values, str(path), Params), _title(path))


def _merged(name: str, folder: Path, above: tuple[str, ...]) -> dict[str, Any]:
    if name in above:
        raise ConfigError(f"preset {name}: it is its own base ({' -> '.join((*above, name))})")
    known = names(folder)
    if name not in known:
        raise ConfigError(f"preset = {name!r}: unknown{did_you_mean(name, known)}, expected: {', '.join(known)}")
    own = dict(read_mapping(folder / f"{name}.yaml"))
    base = own.pop("base", None if name == DEFAULT else DEFAULT)
    values = _merged(str(base), folder, (*above, name)) if base is not None else {}
    recipe = own.pop("recipe", {})
    for section, model in (key.split(".") for key in RECIPES.values()):
        values = merge(values, {section: {model: recipe}})
    merged: dict[str, Any] = merge(values, own)
    return merged


def merge(values: Any, changes: Any) -> Any:
    """Return `values` updated by `changes`; mappings are merged recursively, and other values are replaced."""
    if not isinstance(values, dict) or not isinstance(changes, dict):
        return changes
    return values | {key: merge(values.get(key), change) for key, change in changes.items()}


def _title(path: Path) -> str:
    """Return the comment on top of a file, without `#`."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)
