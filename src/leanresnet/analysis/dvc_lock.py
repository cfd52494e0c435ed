"""A reader of dvc.lock, in which DVC records the dependencies and outputs of each stage, also in earlier commits."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from leanresnet.config.documents import read_yaml, write_yaml
from leanresnet.errors import DataError
from leanresnet.files import not_read
from leanresnet.tracking.git import git

LOCK = "dvc.lock"
CONFLICT = re.compile(r"^(?:<{7}|={7}|>{7})(?: |$)", re.MULTILINE)


class Item(BaseModel):
    """A dependency or an output. Files that a cloud storage versions have no md5."""

    path: str
    md5: str | None = None


class Stage(BaseModel):
    """A stage with its dependencies, outputs and params, which are grouped by file."""

    deps: list[Item] = []
    outs: list[Item] = []
    params: dict[str, dict[str, Any]] = {}

    def digests(self, kind: Literal["deps", "outs"]) -> dict[str, str]:
        """Return the md5 of each path that has one."""
        items: list[Item] = getattr(self, kind)
        return {each.path: each.md5 for each in items if each.md5 is not None}


class Lock(BaseModel):
    """The content of dvc.lock."""

    schema_: Literal["2.0"] = Field(alias="schema")
    stages: dict[str, Stage] = {}


def read_stages(text: str, place: object = LOCK) -> dict[str, Stage]:
    """Parse a dvc.lock and return its stages by name.

    Args:
        place: the file for error messages.

    Raises:
        DataError: if the text is not one that DVC writes.
    """
    remedy = f"expected: as DVC writes it (`git checkout HEAD -- {LOCK}`, or without it `dvc repro`)"
    conflict = CONFLICT.search(text)
    if conflict:
        line = text.count("\n", 0, conflict.start()) + 1
        raise DataError(f"{place}: line {line} is a mark of a merge conflict, {remedy}")
    try:
        # An empty file has no stages.
        return Lock.model_validate(read_yaml(text) or {"schema": "2.0"}).stages
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "its top level"
        raise DataError(f"{place}: {key} is not valid ({first['msg']}), {remedy}") from error
    except ValueError as error:
        raise DataError(f"{place}: {error}, {remedy}") from error


def read_lock(root: Path) -> dict[str, Stage]:
    """Return the stages of a workspace's dvc.lock by name; none if there is no such file.

    Raises:
        DataError: if the file is not one that DVC writes.
        StorageError: if it cannot be read.
    """
    return read_stages(_text(root), root / LOCK)


def _text(root: Path) -> str:
    try:
        # Bytes that are not UTF-8 are replaced, as in the output of git, and then fail as YAML.
        return (root / LOCK).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise not_read(root / LOCK, error) from error


@dataclass(frozen=True)
class Locked:
    """A stage in a dvc.lock.

    Attributes:
        commit: the commit of the dvc.lock, or None for an uncommitted one.
        stage: name of the stage.
        stages: all stages of the dvc.lock by name.
    """

    commit: str | None
    stage: str
    stages: dict[str, Stage] = field(repr=False)

    def before(self) -> list[str]:
        """Return the stage and all stages whose outputs it depends on, in the order in which they run."""
        made_by = {path: name for name in self.stages for path in self.outs(name)}
        # DVC does not run stages with circular dependencies, but an edited file may have them.
        seen: set[str] = set()
        order: list[str] = []

        def visit(name: str) -> None:
            if name in seen:
                return
            seen.add(name)
            for path in self.stages[name].digests("deps"):
                if path in made_by:
                    visit(made_by[path])
            order.append(name)

        visit(self.stage)
        return order

    def given(self) -> dict[str, str]:
        """Return the md5 of each file besides the code that these stages depend on and that none of them makes."""
        stages = [self.stages[name] for name in self.before()]
        made = {path for stage in stages for path in stage.digests("outs")}
        deps = {path: md5 for stage in stages for path, md5 in stage.digests("deps").items()}
        return {path: md5 for path, md5 in deps.items() if path not in made and not path.startswith("src/")}

    def outs(self, stage: str) -> dict[str, str]:
        return self.stages[stage].digests("outs")

    def value(self, key: str) -> object:
        """Return a value of params.yaml that these stages depend on, or None."""
        place: object = self._params()
        for part in key.split("."):
            place = place.get(part) if isinstance(place, dict) else None
        return place

    def params(self) -> str:
        """Return the params of these stages as YAML, in the form of params.yaml."""
        return write_yaml(self._params())

    def _params(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.before():
            for key, value in self.stages[name].params.get("params.yaml", {}).items():
                *sections, last = key.split(".")
                place = found
                for section in sections:
                    place = place.setdefault(section, {})
                place[last] = value
        return found


def find_locked(weights_md5: str, root: Path, stage: str = "") -> Locked | None:
    """Return the stage that wrote these weights, or None.

    Of several stages in one dvc.lock, it is `stage` if it is one of them. The workspace's dvc.lock is searched first,
    then those of the commits of all branches and of DVC's experiments, from the newest on. A damaged dvc.lock of a
    commit is skipped.

    Raises:
        DataError: if the workspace's dvc.lock is not one that DVC writes.
        StorageError: if it cannot be read.
    """
    found = _stage_of(weights_md5, read_lock(root), stage)
    if found:
        return Locked(_newest_commit(root), *found)
    for commit in (git(root, "log", "--all", f"-S{weights_md5}", "--format=%H", "--", LOCK) or "").split():
        try:
            # `git log -S` also lists commits that removed the weights, in whose dvc.lock they are not found.
            found = _stage_of(weights_md5, read_stages(git(root, "show", f"{commit}:./{LOCK}") or ""), stage)
        except DataError:
            continue
        if found:
            return Locked(commit, *found)
    return None


def outputs(stages: dict[str, Stage]) -> set[str]:
    """Return the md5 of all outputs of the stages."""
    return {md5 for stage in stages.values() for md5 in stage.digests("outs").values()}


def _stage_of(weights_md5: str, stages: dict[str, Stage], preferred: str) -> tuple[str, dict[str, Stage]] | None:
    found = [name for name, stage in stages.items() if weights_md5 in stage.digests("outs").values()]
    return (preferred if preferred in found else found[0], stages) if found else None


def _newest_commit(root: Path) -> str | None:
    """Return the current commit if the workspace's dvc.lock is committed without changes, else None."""
    committed = git(root, "show", f"HEAD:./{LOCK}")
    return (git(root, "rev-parse", "HEAD") or "").strip() if committed == _text(root) else None
