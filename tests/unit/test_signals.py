"""Signals, each sent to a process of its own."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import outside_environment

from leanresnet.signals import stop_requests

LISTENING = """
import os, signal, sys
from leanresnet.signals import at_a_sudden_end, compilation, stop_requests
number = getattr(signal, sys.argv[1])
with stop_requests() as requested, at_a_sudden_end(lambda: print("owed", flush=True)):
"""
COMPILING = """
    with compilation():
        try:
            os.kill(os.getpid(), number)
        except BaseException as error:
            print("an exception", error, flush=True)
        print("and goes on", flush=True)
"""
TRAINING = """
    os.kill(os.getpid(), number)
    print(requested(), flush=True)
"""
FORKED = """
    with compilation():
        child = os.fork()
        if not child:
            os.kill(os.getpid(), number)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), requested(), flush=True)
"""


def run(script: str, name: str, before: tuple[str, ...] = ()) -> tuple[int, str, str]:
    command = [*before, sys.executable, "-c", LISTENING + script, name]
    done = subprocess.run(command, env=outside_environment(), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_compilation_ends_with_its_process_and_without_an_exception(name: str, code: int) -> None:
    """Which would come up wherever the compiler is, in callbacks of C++ that let none pass too."""
    said = f"error: stopped by {name} during torch.compile; the same command resumes\n"
    assert run(COMPILING, name) == (code, "owed\n", said)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_outside_of_a_compilation_a_signal_is_noted(name: str) -> None:
    code, said, _ = run(TRAINING, name)
    assert (code, said.split()[0]) == (0, str(int(getattr(__import__("signal"), name))))


def test_what_nohup_ignores_stays_ignored() -> None:
    assert run(TRAINING, "SIGHUP", ("env", "--ignore-signal=HUP")) == (0, "None\n", "")


def test_a_process_that_was_forked_from_a_training_just_ends() -> None:
    assert run(FORKED, "SIGTERM") == (0, "143 None\n", "")


@pytest.mark.parametrize(("stage", "parent", "stop"), [("train", 1, signal.SIGTERM), ("train", 2, None), ("", 1, None)])
def test_the_death_of_dvc_before_it_was_looked_for_counts_as_a_signal(
    stage: str, parent: int, stop: signal.Signals | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system then gives the process another parent."""
    if stage:
        monkeypatch.setenv("DVC_STAGE", stage)
    monkeypatch.setattr(os, "getppid", lambda: parent)
    with stop_requests() as requested:
        assert requested() == stop
