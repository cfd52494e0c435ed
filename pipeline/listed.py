"""Whether the code that runs is the code that DVC records."""

import os
import shlex
from pathlib import Path
from typing import Any

import leanresnet.errors

# Of the code that runs, by what dvc.yaml calls them.
FOLDERS = {"lib": Path(leanresnet.errors.__file__).resolve().parent, "cli": Path(__file__).resolve().parent}


def check_listed() -> None:
    """Compare the files that this process's stage lists in dvc.yaml with those that were imported, if DVC started it.

    They are others where a checkout is used with another one's environment, and where a queued experiment,
    which has a copy of its own, runs after the code was edited. What counts is what they contain.

    Raises:
        ConfigError: naming the file, and the line that repairs it.
    """
    stage, stages = os.environ.get("DVC_STAGE", "").partition("@")[0], Path("dvc.yaml")
    if not stage or not stages.exists():
        return
    from leanresnet.documents import read_yaml

    content: Any = read_yaml(stages.read_text(encoding="utf-8"))
    variables = [each for each in content.get("vars", []) if isinstance(each, dict)]
    places = {name: place for each in variables for name, place in each.items()}
    for dep in content["stages"].get(stage, {}).get("deps", []):
        name, _, file = dep.removeprefix("${").partition("}/")
        if name not in FOLDERS:
            continue
        listed, imported = Path(places[name], file), FOLDERS[name] / file
        if _differ(listed, imported):
            raise leanresnet.errors.ConfigError(f"{listed}: {_wrong(places, name, file, imported)}")


def _wrong(places: dict[str, str], name: str, file: str, imported: Path) -> str:
    from leanresnet.files import workspace

    if (workspace() / places[name] / file).resolve() == imported:
        return f"{imported} was edited since the experiment was queued, accepted: one that is queued now"
    checkout = (workspace() / places["cli"]).parent
    repair = f"python -m pip install --no-deps --no-build-isolation --editable {shlex.quote(str(checkout))}"
    return f"not the code that runs, which is {imported}, accepted: this environment after `{repair}`"


def _differ(listed: Path, imported: Path) -> bool:
    try:
        return listed.read_bytes() != imported.read_bytes()
    except OSError:
        return True
