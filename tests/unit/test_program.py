"""How the program is found, and what becomes of what it prints."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from conftest import outside_environment
from imports import ROOT

from leanresnet.jobs import launcher
from pipeline import cli

MODULE, FUNCTION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["leanresnet"].split(":")
# As the script does that pip writes.
SCRIPT = f"from {MODULE} import {FUNCTION}; {FUNCTION}()"


def program(redirected: str, **environment: str) -> tuple[int, str]:
    """`leanresnet --help` with these redirections of the shell: its exit code, and what it said on stderr."""
    command = ["bash", "-c", f'"$@" {redirected}', "bash", sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        [*command, "--help"], env=outside_environment(**environment), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    return done.returncode, done.stderr.decode()


def test_processes_of_tests_inherit_no_variable_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONOPTIMIZE", "PYTHONUNBUFFERED", "PYTHONWARNINGS"):
        monkeypatch.setenv(name, "1")
    assert not [name for name in outside_environment() if name.startswith("PYTHON")]


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        ("", 0, ""),
        ("> /dev/full", 5, "error: stdout: cannot be written (No space left on device)\n"),
        (">&-", 5, "error: stdout: cannot be written (Bad file descriptor)\n"),
        ("> /dev/full 2>&-", 5, ""),
        ("> /dev/full 2> /dev/full", 5, ""),
        ("2>&-", 0, ""),
        ("<&- 2>&-", 0, ""),
    ],
)
def test_what_cannot_be_printed_is_one_line(redirected: str, code: int, said: str) -> None:
    assert program(redirected) == (code, said)


def test_without_a_reader_it_ends_as_by_sigpipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", SCRIPT, "--help"]
    done = subprocess.run(command, env=outside_environment(), stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("imported", ["click", "torch.nn"])
def test_a_sigint_during_an_import_ends_the_program(imported: str, tmp_path: Path) -> None:
    """Without a traceback, and also where the imported package swallows the exception."""
    interrupt = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        try:\n"
        f"            if name == {imported!r}:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "        except KeyboardInterrupt:\n"
        "            pass\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    (tmp_path / "params.yaml").touch()
    done = subprocess.run(
        [sys.executable, "-c", interrupt + SCRIPT, "predict", "image.png"],
        cwd=tmp_path,
        env=outside_environment(),
        capture_output=True,
        text=True,
        # The tests may run in the background, where SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


def test_a_sigint_elsewhere_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Click makes of it is a RuntimeError."""

    def interrupted(**_: object) -> None:
        raise click.Abort

    monkeypatch.setattr(cli, "cli", interrupted)
    monkeypatch.setattr(cli, "check_listed", lambda: None)
    monkeypatch.setitem(sys.modules, "leanresnet.jobs.oom", None)
    assert cli.run() == 128 + signal.SIGINT


def test_another_package_of_that_name_is_not_the_program(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise ImportError('somebody else')\n")
    assert program("", PYTHONPATH=str(tmp_path)) == (0, "")


@pytest.mark.parametrize("ignored", [False, True])
def test_other_processes_run_the_file_that_this_one_runs(ignored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the workspace has a folder `pipeline`, and with nohup."""
    launched: list[object] = []

    class Launch:
        def __init__(self, config: object, entrypoint: str) -> None:
            launched.append(set(config.signals_to_handle.split(",")))  # type: ignore[attr-defined]

        def __call__(self, *arguments: str) -> None:
            launched.append(arguments)

    monkeypatch.setattr(launcher, "elastic_launch", Launch)
    monkeypatch.setattr(launcher.logging, "disable", lambda: None)
    monkeypatch.setattr(sys, "argv", ["/bin/leanresnet", "train", "baseline"])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit):
            launcher.launch(2)
    finally:
        signal.signal(signal.SIGHUP, before)
    signals = {"SIGTERM", "SIGINT", "SIGQUIT"} if ignored else {"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP"}
    assert launched == [signals, ("-P", "/bin/leanresnet", "train", "baseline")]


def test_a_user_without_a_name_can_train() -> None:
    """torch names a folder of its compiler after the user, and MLflow a run's."""
    script = (
        "import getpass, os, pwd\n"
        "from pipeline import cli\n"
        "def unknown(number): raise KeyError(number)\n"
        "pwd.getpwuid = unknown\n"
        "cli.run = lambda: int(getpass.getuser() != str(os.getuid()))\n"
        "cli.main()\n"
    )
    environment = {k: v for k, v in outside_environment().items() if k not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
