"""A checkout of its own for the tests that drive the real dvc, git and mlflow."""

import gc
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import pytest
from environment import outside_environment
from filelock import FileLock
from forked import folder_of_client, path_of_forks
from imports import ROOT
from waiting import PATIENCE

from leanresnet.scaffold.presets import load_preset
from leanresnet.scaffold.reference import render

CHECKOUT_PARTS = (
    "src",
    "pipeline",
    "presets",
    "pyproject.toml",
    "params.yaml",
    "params.schema.json",
    "dvc.yaml",
    ".dvcignore",
    ".gitignore",
    ".dvc/config",
    ".dvc/plots.html",
    ".dvc/.gitignore",
)
# Two workers share two cores, and the networks of the tests gain nothing from a second thread. Set before torch is
# imported, and for all processes that the tests start: threads that wait must not take a core from one that works.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Only Triton's kernels for a GPU use the processes that torch would start for a compilation.
os.environ.setdefault("TORCH_WARM_POOL", "0")
# `nohup make test` leaves it ignored, which a process that is started inherits.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# DVC's own words where another of its commands holds the workspace, or a stage's files.
HELD = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(os.environ) - set(outside_environment()):
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run waits for MLflow, however long that takes to start on a busy machine."""
    if reporting := sys.modules.get("leanresnet.tracking.run"):
        monkeypatch.setattr(reporting, "LAST_SECONDS", PATIENCE)


def shell_in(folder: Path, **environment: str) -> Shell:
    """Runs a command line in `folder`; a failure shows what it printed."""

    def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=folder, env=outside_environment(**environment), capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@contextmanager
def edited(file: Path, text: str) -> Iterator[None]:
    """`file` with other content, and its own again afterwards, whatever happens."""
    before = file.read_text()
    file.write_text(text)
    try:
        yield
    finally:
        file.write_text(before)


def copy_checkout(folder: Path) -> Path:
    """This checkout's tracked parts without its history, as an unpacked archive has them."""
    for part in CHECKOUT_PARTS:
        source, target = ROOT / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    return folder


@cache
def preset_text(name: str) -> str:
    """The params.yaml of a preset."""
    preset = load_preset(name, ROOT / "presets")
    return render(preset.params, preset.title)


class Checkout:
    """A git checkout with the demo's params, in which `dvc repro` has run to the end, saying `first_repro`."""

    def __init__(self, folder: Path, first_repro: str) -> None:
        self.folder = folder
        self.shell = _shell_of_checkout(folder)
        self.first_repro = first_repro


def _shell_of_checkout(folder: Path) -> Shell:
    """It runs the checkout's own code, in forks."""
    return shell_in(folder, PYTHONPATH=f"{folder}{os.pathsep}{folder / 'src'}", PATH=path_of_forks())


def make_checkout(folder: Path) -> str:
    """Makes it, and returns what its first `dvc repro` said."""
    copy_checkout(folder)
    shell = _shell_of_checkout(folder)
    (folder / "params.yaml").write_text(preset_text("demo"))
    for command in (
        ("git", "init", "--quiet"),
        ("git", "config", "user.email", "tests@example.org"),
        ("git", "config", "user.name", "tests"),
        ("git", "add", "--all"),
        ("git", "commit", "--quiet", "--message", "demo"),
    ):
        shell(*command)
    first_repro = shell("dvc", "repro").stdout
    # On a slow machine, MLflow may not have received all runs.
    shell("leanresnet", "sync")
    shell("git", "add", "--all")
    shell("git", "commit", "--quiet", "--message", "dvc.lock")
    return first_repro


def made_checkout(folder: Path) -> str:
    """What its first `dvc repro` said; the first process that asks makes it, and the others wait."""
    said = folder / ".git" / "first-repro"
    with FileLock(folder.with_suffix(".lock")):
        if not said.exists():
            shutil.rmtree(folder, ignore_errors=True)
            said.write_text(make_checkout(folder))
    return said.read_text()


def _place(factory: pytest.TempPathFactory) -> Path:
    """The same for all workers."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"


def _takes_checkout(item: pytest.Item) -> bool:
    return "checkout" in getattr(item, "fixturenames", ())


def pytest_configure() -> None:
    # The workers, which are started after this, use the same folder.
    folder_of_client()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_takes_checkout)
    # Packages and tests stay to the end, so the garbage collector need not look through them.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    # nanobind, which triton uses, reports objects that are frozen at the end as leaks.
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _making(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make the checkout in a process of its own, beside the tests that do not need it, which run first.

    Otherwise all workers would wait for one of them to make it.
    """
    if not any(map(_takes_checkout, request.session.items)):
        yield
        return
    make = "import sys, conftest; conftest.made_checkout(conftest.Path(sys.argv[1]))"
    command = [sys.executable, "-c", make, str(_place(tmp_path_factory))]
    options = {"cwd": Path(__file__).parent, "env": outside_environment(), "start_new_session": True}
    with subprocess.Popen(command, **options) as process:
        yield
        # Its dvc and the stages too, where the tests were stopped before it was done.
        os.killpg(process.pid, signal.SIGKILL)


def new_checkout(factory: pytest.TempPathFactory) -> Checkout:
    made = _place(factory)
    said = made_checkout(made)
    folder = factory.mktemp("checkout") / "checkout"
    shutil.copytree(made, folder, symlinks=True)
    return Checkout(folder, said)


def _logged(folder: Path) -> set[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return set(database.execute("SELECT run_uuid, key, value, step FROM latest_metrics"))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A copy for each worker. Its tests may add to it, but no metric of its three models may change."""
    made = new_checkout(tmp_path_factory)
    logged = _logged(made.folder)
    yield made
    assert logged <= _logged(made.folder), "a test evaluated in the checkout of all, so that others depend on its turn"
