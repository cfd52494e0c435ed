"""The house rules of the code, read from its source."""

import ast
import csv
import json
import re
import shutil
import subprocess
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from imports import PACKAGES, ROOT, closure, direct_imports

from hatch_build import RELEASE
from leanresnet.jobs.workdir import CODE

LIBRARY = sorted(PACKAGES["leanresnet"].rglob("*.py"))
PROGRAM = sorted(PACKAGES["pipeline"].rglob("*.py"))
BENCH = sorted((ROOT / "bench").rglob("*.py"))
# What says and stops things, and changes no byte of a result.
MESSAGES = {"errors", "signals"}
# The modules whose work determines a stage's outputs; the command around them reports and handles processes.
WORK = {
    "download": ["data.sources", "config.load"],
    "split": ["data.division", "config.load"],
    "train": ["training.fit", "training.results", "training.tasks", "models.checkpoint", "config.load"],
    "distill": ["training.fit", "training.results", "training.tasks", "models.checkpoint", "config.load"],
    "evaluate": ["evaluation.report", "config.load"],
}


def name_of(file: Path) -> str:
    """The module's name within the library; that of a package is its `__init__`."""
    return ".".join(file.relative_to(PACKAGES["leanresnet"]).with_suffix("").parts)


def package_of(name: str) -> str:
    """The package that a module lies in; modules directly in the library are the package `top`."""
    return name.partition(".")[0] if "." in name else "top"


def imports() -> dict[str, set[str]]:
    """The modules of the library that each of its modules imports."""
    modules = {name_of(file): file for file in LIBRARY if file.stem not in ("__init__", "__main__")}
    found = {
        name: {each.removeprefix("leanresnet.") for each in direct_imports(file)} for name, file in modules.items()
    }
    return {name: {each for each in imported if each in modules} for name, imported in found.items()}


def allowed() -> dict[str, set[str]]:
    """The packages that each package may import, from the table in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| ([a-z()]+) \| .* \| ([a-z, ]*) \|$", text, re.MULTILINE)
    assert rows[0] == ("package", "imports")
    return {package.strip("()"): {each for each in names.split(", ") if each} for package, names in rows[1:]}


def importers(package: str, files: list[Path]) -> set[str]:
    return {file.name for file in files if any(name.split(".")[0] == package for name in direct_imports(file))}


def test_each_outside_package_has_one_place() -> None:
    assert importers("ruamel", LIBRARY + PROGRAM) == {"documents.py"}
    assert importers("yaml", LIBRARY + PROGRAM) == set()
    tracking = {file for file in LIBRARY if file.parent.name == "tracking"}
    assert importers("mlflow", [file for file in LIBRARY + PROGRAM if file not in tracking]) == set()
    assert importers("click", LIBRARY) == set()
    assert importers("dvc", LIBRARY + PROGRAM) == set()
    assert importers("pipeline", LIBRARY) == set()


def test_packages_import_what_the_table_says() -> None:
    table = allowed()
    packages = {
        file.relative_to(PACKAGES["leanresnet"]).parts[0]
        for file in LIBRARY
        if len(file.parents) > len(PACKAGES["leanresnet"].parents) + 1
    }
    assert set(table) == {"top"} | packages
    for name, imported in imports().items():
        for other in imported:
            package, used = package_of(name), package_of(other)
            assert package == used or used in table[package], f"{name} imports {other}, which the table does not name"


def test_nothing_is_imported_in_a_circle() -> None:
    """Neither packages, as the table has them, nor modules, also of one package."""
    for graph in (allowed(), imports()):
        list(TopologicalSorter(graph).static_order())


def test_every_arrow_of_the_table_is_used() -> None:
    used: dict[str, set[str]] = {}
    for name, imported in imports().items():
        used.setdefault(package_of(name), set()).update({package_of(other) for other in imported} - {package_of(name)})
    assert used == allowed()


def test_few_modules_lie_outside_of_the_packages() -> None:
    top = {file.stem for file in PACKAGES["leanresnet"].glob("*.py")} - {"__init__", "__main__"}
    assert len(top) <= 4, top


def test_commands_import_nothing_heavy_at_the_top() -> None:
    light = {"click", "leanresnet.errors", "leanresnet.__main__", "pipeline"}
    for file in PROGRAM:
        for node in ast.parse(file.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                outside = name.split(".")[0] in ("leanresnet", "torch", "mlflow", "numpy", "dvc", "pydantic")
                assert not outside or name in light, f"{file.name} imports {name}"


def test_a_wheel_holds_what_the_commands_ask_of_a_release() -> None:
    asked = {name for file in PROGRAM for name in re.findall(r"""\breleased\("([^"]+)"\)""", file.read_text())}
    assert asked | {"pipeline"} == set(RELEASE)
    assert all((ROOT / name).exists() for name in RELEASE)


def test_a_source_archive_has_nothing_that_dvc_keeps_to_this_machine() -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    ignored = (ROOT / ".dvc" / ".gitignore").read_text().split()
    assert set(targets["sdist"]["exclude"]) == {f"/.dvc{path}" for path in ignored}


def test_no_view_of_a_buffer_is_taken() -> None:
    """A view that a frame of an exception keeps alive ends Python 3.12 by a segmentation fault; `getvalue` is safe."""
    assert [str(file) for file in [*LIBRARY, *PROGRAM, *BENCH] if ".getbuffer(" in file.read_text()] == []


RUNS_CODE = re.compile(
    r"pickle\.loads?\(|from pickle import .*\bloads?\b|torch\.load\((?!.*weights_only=True)|weights_only=False"
    r"|yaml\.(unsafe_|full_)?load(_all)?\(|typ=['\"]unsafe|allow_pickle=True|\beval\(['\"]|\bexec\("
)


def test_nothing_is_loaded_that_could_run_code() -> None:
    for file in [*LIBRARY, *PROGRAM, *BENCH]:
        found = RUNS_CODE.search(file.read_text())
        assert not found, f"{file}: {found}"


def stages() -> dict[str, dict[str, list[str]]]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("stage", WORK)
def test_a_stage_depends_on_the_packages_that_determine_its_bytes(stage: str) -> None:
    listed = {dep for dep in stages()[stage]["deps"] if dep.startswith("src/")}
    reached = {name_of(file) for start in WORK[stage] for file in closure(f"leanresnet.{start}")} - MESSAGES
    places = {place for name in reached for place in listed if _covers(place, name)}
    missing = {name for name in reached if not any(_covers(place, name) for place in listed)}
    assert not missing, f"{stage} runs {sorted(missing)}, which it does not list"
    assert places == listed, f"{stage} lists {sorted(listed - places)}, of which it runs nothing"


def _covers(place: str, name: str) -> bool:
    """Whether a dependency, a package or a module, holds the module of this name."""
    inner = place.removeprefix("src/leanresnet/").removesuffix(".py").replace("/", ".")
    return f"{name}.".startswith(f"{inner}.")


def test_a_kept_training_is_one_of_the_code_that_dvc_lists() -> None:
    listed = {dep.removeprefix("src/leanresnet/") for dep in stages()["train"]["deps"] if dep.startswith("src/")}
    assert listed == set(CODE)


def test_the_test_split_reaches_evaluate_alone() -> None:
    receivers = {name for name, stage in stages().items() if "data/test.safetensors" in stage["deps"]}
    assert receivers == {"evaluate"}


@pytest.mark.parametrize(
    ("there", "chosen"),
    [("3.11 3.12 3.13", "python3.13"), ("3.11 3.12", "python3.12"), ("3.11", "python3.11"), ("", None)],
)
def test_make_takes_the_newest_python_that_there_is(there: str, chosen: str | None, tmp_path: Path) -> None:
    for name in [*(f"python{version}" for version in there.split()), "touch"]:
        (tmp_path / name).write_text("#!/bin/bash\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": str(tmp_path)}
    command = [shutil.which("make") or "make", f"--file={ROOT / 'Makefile'}", f"VENV={tmp_path}/venv"]
    command += [f"SHELL={shutil.which('bash')}", f"{tmp_path}/venv/.locked"]
    (tmp_path / "venv/bin").mkdir(parents=True)
    shutil.copy(tmp_path / "touch", tmp_path / "venv/bin/python")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if chosen:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{tmp_path}/venv is made with {chosen}\n")
    else:
        assert "error: no python3.13, python3.12 or python3.11 in PATH, expected: one of them\n" in done.stderr


def test_make_setup_leaves_out_what_only_a_gpu_needs(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text('#!/bin/bash\necho "$@"\n')
    (tmp_path / "bin/python").chmod(0o755)
    command = [
        "make",
        "--no-print-directory",
        f"--file={ROOT / 'Makefile'}",
        f"VENV={tmp_path}",
        "PYTHON=true",
        "CPU=1",
        f"{tmp_path}/.locked",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2].endswith(f" --require-hashes --no-deps -r {tmp_path}/cpu.lock")
    whole, small = (path.read_text() for path in (ROOT / "requirements.lock", tmp_path / "cpu.lock"))
    blocks = [set(re.split(r"\n(?=\S)", text.strip())) for text in (whole, small)]
    assert blocks[1] < blocks[0]
    (names,) = re.findall(r"^GPU_ONLY := (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {block.partition("==")[0] for block in blocks[0] - blocks[1]} == set(names.split("|"))


def test_make_clean_keeps_the_runs_of_the_demo(tmp_path: Path) -> None:
    for name in (".demo/mlflow.db", ".ruff_cache/entry"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    command = ["make", "--silent", f"--file={ROOT / 'Makefile'}", "clean"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == ".demo is kept with its runs; to remove the demo: rm -rf .demo\n"
    assert [path.name for path in tmp_path.iterdir()] == [".demo"]
    assert (tmp_path / ".demo/mlflow.db").exists()


def test_the_docs_name_each_target_and_no_other() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme, reference = ((ROOT / name).read_text() for name in ("README.md", "docs/reference.md"))
    assert (
        {"demo", "test", "repro", "ui"}
        <= set(re.findall(r"(?:`|^ {4})make ([a-z][a-z-]*)", readme, re.MULTILINE))
        <= targets
    )
    assert set(re.findall(r"^\| `make ([a-z-]+)`", reference, re.MULTILINE)) == targets


def test_the_reference_has_each_variable_preset_and_exit_code() -> None:
    reference = (ROOT / "docs/reference.md").read_text()
    code = "".join(path.read_text() for folder in ("src", "pipeline") for path in (ROOT / folder).rglob("*.py"))
    rows = set(re.findall(r"^\| `([A-Za-z0-9_-]+)` \|", reference, re.MULTILINE))
    assert {name for name in rows if name.startswith("LEANRESNET_")} == set(re.findall(r"LEANRESNET_[A-Z0-9_]+", code))
    assert {path.stem for path in (ROOT / "presets").glob("*.yaml")} <= rows
    codes = set(re.findall(r"exit_code = (\d+)", code)) - {"128"}
    assert codes <= set(re.findall(r"^\| (\d+) \|", reference, re.MULTILINE))


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            place, _, anchor = target.partition("#")
            if "://" in target:
                continue
            linked = page.parent / place if place else page
            assert linked.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in map(_anchor, re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)), target


def test_the_results_are_those_of_the_files_of_their_runs() -> None:
    page = (ROOT / "docs/results.md").read_text()
    for folder in (ROOT / "docs/runs").iterdir():
        if not folder.is_dir():
            continue
        trained = json.loads((folder / "train.json").read_text())
        history = csv.DictReader((folder / "history.csv").read_text().splitlines())
        accuracies = [float(row["val/accuracy"]) for row in history]
        assert max(accuracies) == accuracies[trained["best_epoch"] - 1] == trained["val/accuracy"], folder.name
        if (folder / "test.json").exists():
            report = json.loads((folder / "test.json").read_text())
            validation, test = (f"{report[key]:.2%}" for key in ("val/evaluated_accuracy", "test/accuracy"))
            assert re.search(rf"\| {validation[:-1]} % \| (\*\*)?{test[:-1]} %", page), folder.name
        else:
            assert " | ".join(f"{accuracy * 100:.2f}" for accuracy in accuracies[:5]) in page, folder.name


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_the_lock_has_hashes_and_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=\S)", lock.strip()))
