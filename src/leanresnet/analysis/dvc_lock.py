"""dvc.lock, as DVC writes it: what each stage was given and what it made, now and in the commits before."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from leanresnet.config.documents import read_yaml, write_yaml
from leanresnet.errors import DataError, StorageError
from leanresnet.tracking.git import git

LOCK = "dvc.lock"
CONFLICT = re.compile(r"^(?:<{7}|={7}|>{7})(?: |$)", re.MULTILINE)


class Item(BaseModel):
    """A dependency or an output. What another cloud versions has no md5."""

    path: str
    md5: str | None = None


class Stage(BaseModel):
    deps: list[Item] = []
    outs: list[Item] = []
    params: dict[str, dict[str, Any]] = {}

    def digests(self, kind: Literal["deps", "outs"]) -> dict[str, str]:
        """The md5 of each path."""
        items: list[Item] = getattr(self, kind)
        return {each.path: each.md5 for each in items if each.md5 is not None}


class Lock(BaseModel):
    schema_: Literal["2.0"] = Field(alias="schema")
    stages: dict[str, Stage] = {}


def read_stages(text: str, place: object = LOCK) -> dict[str, Stage]:
    """By name.

    Raises:
        DataError: it is not as DVC writes it; `place` is what the error calls it.
    """
    remedy = f"expected: as DVC writes it (`git checkout HEAD -- {LOCK}`, or without it `dvc repro`)"
    conflict = CONFLICT.search(text)
    if conflict:
        line = text.count("\n", 0, conflict.start()) + 1
        raise DataError(f"{place}: line {line} is a mark of a merge conflict, {remedy}")
    try:
        # An empty file has no stage.
        return Lock.model_validate(read_yaml(text) or {"schema": "2.0"}).stages
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "its top level"
        raise DataError(f"{place}: {key} is of another kind ({first['msg']}), {remedy}") from error
    except ValueError as error:
        raise DataError(f"{place}: {error}, {remedy}") from error


def read_lock(root: Path) -> dict[str, Stage]:
    """The stages of a workspace's dvc.lock; none where there is no such file.

    Raises:
        DataError: it is not as DVC writes it.
        StorageError: it cannot be read.
    """
    return read_stages(_text(root), root / LOCK)


def _text(root: Path) -> str:
    try:
        # As of a commit's; what is no text is no YAML either.
        return (root / LOCK).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StorageError(f"{root / LOCK}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class Locked:
    """A stage as a dvc.lock has it: that of `commit`, or the workspace's own where that is None."""

    commit: str | None
    stage: str
    stages: dict[str, Stage] = field(repr=False)

    def before(self) -> list[str]:
        """The stage and all whose outputs it depends on, in the order in which they run."""
        provenance = {path: name for name in self.stages for path in self.outs(name)}
        # Stages that DVC ran make no circle, but a file may say so.
        seen: set[str] = set()
        order: list[str] = []

        def visit(name: str) -> None:
            if name in seen:
                return
            seen.add(name)
            for path in self.stages[name].digests("deps"):
                if path in provenance:
                    visit(provenance[path])
            order.append(name)

        visit(self.stage)
        return order

    def outs(self, stage: str) -> dict[str, str]:
        return self.stages[stage].digests("outs")

    def params(self) -> str:
        """Those of all these stages, as params.yaml would have them."""
        found: dict[str, Any] = {}
        for name in self.before():
            found |= self.stages[name].params.get("params.yaml", {})
        return write_yaml(found)


def find_locked(weights_md5: str, root: Path) -> Locked | None:
    """The stage that wrote these weights: from the workspace's dvc.lock, or the newest commit's that has them.

    Raises:
        DataError: the workspace's is not as DVC writes it. A commit's that is not is passed over.
        StorageError: it cannot be read.
    """
    found = _stage_of(weights_md5, read_lock(root))
    if found:
        return Locked(_newest_commit(root), *found)
    for commit in (git(root, "log", f"-S{weights_md5}", "--format=%H", "--", LOCK) or "").split():
        try:
            # The second of two commits is the one that removed them.
            found = _stage_of(weights_md5, read_stages(git(root, "show", f"{commit}:./{LOCK}") or ""))
        except DataError:
            continue
        if found:
            return Locked(commit, *found)
    return None


def _stage_of(weights_md5: str, stages: dict[str, Stage]) -> tuple[str, dict[str, Stage]] | None:
    for name, stage in stages.items():
        if weights_md5 in stage.digests("outs").values():
            return name, stages
    return None


def _newest_commit(root: Path) -> str | None:
    """Of the workspace's dvc.lock, if it is committed as it is."""
    committed = git(root, "show", f"HEAD:./{LOCK}")
    return (git(root, "rev-parse", "HEAD") or "").strip() if committed == _text(root) else None
