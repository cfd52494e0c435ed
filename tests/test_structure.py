"""The house rules of the code, read from its source."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from imports import PACKAGES, ROOT, closure, direct_imports

LIBRARY = sorted(PACKAGES["leanresnet"].rglob("*.py"))
PROGRAM = sorted(PACKAGES["pipeline"].rglob("*.py"))
# From the leaves up: a module imports from its own level or below.
LEVELS = [
    {"text"},
    {"errors"},
    {"documents", "files", "config", "params", "git", "interruption", "memory", "limits", "lock", "program"},
    {
        "data.augmentation",
        "data.splits",
        "losses",
        "compilation",
        "device",
        "distributed",
        "launcher",
        "models.blocks",
        "models.budget",
        "models.ensemble",
        "models.resnet",
        "models.served",
        "models.space",
    },
    {
        "data.cifar",
        "data.digits",
        "data.download",
        "data.batches",
        "optim",
        "schedule",
        "sharpness",
        "evaluation",
        "predictions",
        "curves",
        "checkpoint",
        "snapshots",
        "events",
        "journal",
        "summary",
    },
    {"data.sources", "progress", "pictures", "tracking", "inference", "export"},
    {"registry", "reporting", "playground.app", "playground.server"},
    {"outputs", "charts", "disagreement", "lineage"},
    {"assessment", "champion", "comparison"},
    {"page", "restored"},
    {"trainer", "work"},
    {"assembly"},
    {"training", "estimate"},
    {"experiment"},
]


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGES["leanresnet"]).with_suffix("").parts)


def importers(package: str, files: list[Path]) -> set[str]:
    return {file.name for file in files if any(name.split(".")[0] == package for name in direct_imports(file))}


def test_each_outside_package_has_one_place() -> None:
    assert importers("ruamel", LIBRARY + PROGRAM) == {"documents.py"}
    assert importers("yaml", LIBRARY + PROGRAM) == set()
    assert importers("mlflow", LIBRARY + PROGRAM) == {"tracking.py"}
    assert importers("click", LIBRARY) == set()
    assert importers("dvc", LIBRARY + PROGRAM) == set()
    assert importers("pipeline", LIBRARY) == set()


def test_imports_point_one_way() -> None:
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    modules = {name_of(file): file for file in LIBRARY if file.name != "__init__.py"}
    assert set(modules) == set(level)
    for name, file in modules.items():
        for imported in direct_imports(file):
            inner = imported.removeprefix("leanresnet.")
            if inner in level:
                assert level[inner] <= level[name], f"{name} imports {inner}"


def test_commands_import_nothing_heavy_at_the_top() -> None:
    light = {"click", "leanresnet.errors", "leanresnet.program", "pipeline"}
    for file in PROGRAM:
        for node in ast.parse(file.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                outside = name.split(".")[0] in ("leanresnet", "torch", "mlflow", "numpy", "dvc", "pydantic")
                assert not outside or name in light, f"{file.name} imports {name}"


RUNS_CODE = re.compile(
    r"pickle\.loads?\(|from pickle import .*\bloads?\b|torch\.load\((?!.*weights_only=True)|weights_only=False"
    r"|yaml\.(unsafe_|full_)?load(_all)?\(|typ=['\"]unsafe|allow_pickle=True|\beval\(['\"]|\bexec\("
)


def test_nothing_is_loaded_that_could_run_code() -> None:
    for file in [*LIBRARY, *PROGRAM, *(ROOT / "bench").glob("*.py")]:
        found = RUNS_CODE.search(file.read_text())
        assert not found, f"{file}: {found}"


def stages() -> dict[str, dict[str, list[str]]]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("stage", ["download", "split", "train", "distill", "evaluate"])
def test_a_stage_depends_on_exactly_the_modules_it_imports(stage: str) -> None:
    listed = {dep for dep in stages()[stage]["deps"] if dep.startswith(("${lib}", "${cli}"))}
    imported = {
        file.relative_to(ROOT).as_posix().replace("src/leanresnet/", "${lib}/").replace("pipeline/", "${cli}/")
        for file in closure(f"pipeline.{stage}")
    }
    assert listed == imported, f"missing {sorted(imported - listed)}, too many {sorted(listed - imported)}"


def test_the_test_split_reaches_evaluate_alone() -> None:
    receivers = {name for name, stage in stages().items() if "data/test.safetensors" in stage["deps"]}
    assert receivers == {"evaluate"}


def test_the_readme_names_real_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4})make ([a-z][a-z-]*)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {"demo", "test", "repro", "check", "ui"} <= named <= targets


def test_the_lock_has_hashes_and_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=\S)", lock.strip()))
