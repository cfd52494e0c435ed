"""dvc.lock, as DVC writes it: what each stage was given and what it made, now and in the commits before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanresnet.documents import read_yaml, write_yaml
from leanresnet.git import git

LOCK = "dvc.lock"


def read_stages(text: str) -> dict[str, Any]:
    """By name."""
    document: Any = read_yaml(text) or {}
    stages: dict[str, Any] = document.get("stages", {})
    return stages


def digests(stage: dict[str, Any], kind: str) -> dict[str, str]:
    """The md5 of each path; `kind` is outs or deps."""
    return {each["path"]: each["md5"] for each in stage.get(kind, [])}


@dataclass(frozen=True)
class Locked:
    """A stage as a dvc.lock has it: that of `commit`, or the workspace's own where that is None."""

    commit: str | None
    stage: str
    stages: dict[str, Any]

    def before(self) -> list[str]:
        """The stage and all whose outputs it depends on, in the order in which they run."""
        made_by = {path: name for name, stage in self.stages.items() for path in digests(stage, "outs")}
        order: list[str] = []

        def visit(name: str) -> None:
            for path in digests(self.stages[name], "deps"):
                if path in made_by:
                    visit(made_by[path])
            if name not in order:
                order.append(name)

        visit(self.stage)
        return order

    def outs(self, stage: str) -> dict[str, str]:
        return digests(self.stages[stage], "outs")

    def params(self) -> str:
        """Those of all these stages, as params.yaml would have them."""
        found: dict[str, Any] = {}
        for name in self.before():
            found |= self.stages[name].get("params", {}).get("params.yaml", {})
        return write_yaml(found)


def find_locked(weights_md5: str, root: Path) -> Locked | None:
    """The stage that wrote these weights: from the workspace's dvc.lock, or the newest commit's that has them."""
    places: list[tuple[str | None, str]] = []
    if (root / LOCK).exists():
        places.append((None, (root / LOCK).read_text()))
    for commit in (git(root, "log", f"-S{weights_md5}", "--format=%H", "--", LOCK) or "").split():
        # The second of two commits is the one that removed them.
        places.append((commit, git(root, "show", f"{commit}:./{LOCK}") or ""))
    for place, text in places:
        stages = read_stages(text)
        for name, stage in stages.items():
            if weights_md5 in digests(stage, "outs").values():
                return Locked(_newest_commit(root, text) if place is None else place, name, stages)
    return None


def _newest_commit(root: Path, text: str) -> str | None:
    """Of the workspace's dvc.lock, if it is committed as it is."""
    committed = git(root, "show", f"HEAD:./{LOCK}")
    return (git(root, "rev-parse", "HEAD") or "").strip() if committed == text else None
