"""Real processes that share each batch: they train what one process trains, and stop and go on together."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from conftest import outside_environment
from helpers import synthetic_split, tiny_recipe
from test_resume import COMMAND, newest, prepare, results, the_run, train, wait_for

from leanresnet import experiment
from leanresnet.data.splits import save_split
from leanresnet.distributed import World
from leanresnet.errors import ConfigError
from leanresnet.experiment import run_experiment
from leanresnet.losses import CrossEntropy
from leanresnet.outputs import Outputs, read_history
from leanresnet.training import Lesson

STATES = 6 * 3 + 6  # a snapshot a step and an epoch
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "pipeline"]


def prepared(folder: Path, **changes: object) -> Path:
    """A training in which pairs are mixed and each step has two passes, in float32."""
    prepare(folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    recipe = params["train"]["baseline"]
    recipe.update({"precision": "fp32", "sync_batch_norm": True, **changes})
    recipe["augmentation"]["mix"] = "cutmix"
    recipe["sharpness"]["rho"] = 0.5
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    settings = {"LEANRESNET_SNAPSHOT_SECONDS": "0", "OMP_NUM_THREADS": "1"}
    environment = outside_environment(**settings)
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def worker(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    (found,) = [child for child in psutil.Process(launcher.pid).children() if child.environ().get("RANK") == str(rank)]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes that nobody interrupts, started by torchrun's own command."""
    folder = prepared(tmp_path_factory.mktemp("whole"))
    process = start(folder, *TORCHRUN, *COMMAND[1:])
    assert process.communicate() is not None
    assert process.returncode == 0
    return folder


def test_two_processes_train_what_one_trains(whole: Path, tmp_path: Path) -> None:
    """Same images, same steps, batch norm over both shares: the losses differ by rounding alone."""
    alone = prepared(tmp_path)
    assert train(alone) == (0, "")
    one, two = (read_history(folder / "results/baseline/history.csv") for folder in (alone, whole))
    for name in ("train/loss", "val/loss"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], abs=1e-3)
        assert [row[name] for row in two] != [row[name] for row in one]
    assert [row["lr"] for row in two] == [row["lr"] for row in one]
    (first, metrics), (second, _) = the_run(whole), the_run(alone)
    assert first.info.status == "FINISHED"
    assert [step for step, _ in metrics["train/loss"]] == list(range(1, 7))
    assert (first.data.tags["processes"], second.data.tags["processes"]) == ("2", "1")
    assert first.data.params == second.data.params


def test_a_lost_process_or_a_signal_ends_all_and_the_next_goes_on(whole: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    command = [*COMMAND, "--nproc", "2"]
    launcher = start(folder, *command)
    wait_for(lambda: newest(folder) >= 5)
    worker(launcher, 1).kill()
    error = launcher.communicate()[1]
    assert launcher.returncode == 8
    lost = "error: a process of this training ended before its time; the same command goes on from the last snapshot"
    assert error.splitlines()[-1] == lost
    left = newest(folder)
    launcher = start(folder, *command)
    wait_for(lambda: newest(folder) > left)
    os.kill(launcher.pid, signal.SIGTERM)
    error = launcher.communicate(timeout=30)[1]
    assert launcher.returncode == 143
    # One of the two says it. So soon after its start, MLflow may not have been imported yet, and a line says so.
    said = [line for line in error.splitlines() if not line.startswith("warning: MLflow")]
    assert [line[:37] for line in said] == ["error: stopped by SIGTERM after epoch"]
    assert newest(folder) < STATES
    launcher = start(folder, *command)
    assert (launcher.communicate()[1], launcher.returncode) == ("", 0)
    assert STATES <= newest(folder) <= STATES + 1  # what SIGTERM saved may be where it began
    assert results(folder) == results(whole)


def test_the_death_of_torchrun_counts_as_a_signal(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(
        "import pathlib, time\n"
        "from leanresnet.interruption import stop_requests\n"
        "with stop_requests() as requested:\n"
        "    pathlib.Path('ready').touch()\n"
        "    while requested() is None:\n"
        "        time.sleep(0.05)\n"
        "    pathlib.Path('asked').write_text(requested().name)\n"
    )
    launch = "import subprocess, sys; subprocess.run([sys.executable, 'worker.py'])"
    environment = outside_environment(TORCHELASTIC_RUN_ID="1")
    with subprocess.Popen([sys.executable, "-c", launch], cwd=tmp_path, env=environment) as launcher:
        wait_for((tmp_path / "ready").exists)
        launcher.kill()
    wait_for((tmp_path / "asked").exists, 10)
    assert (tmp_path / "asked").read_text() == "SIGTERM"


def test_a_batch_that_cannot_be_shared_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "world", lambda: nullcontext(World(0, 2)))
    files = tmp_path / "train.safetensors", tmp_path / "validation.safetensors"
    for file in files:
        save_split(synthetic_split(30), file)
    lesson, outputs = Lesson("train@baseline", "here", CrossEntropy(0.0)), Outputs(tmp_path / "m", tmp_path / "r")
    with pytest.raises(
        ConfigError, match=r"^here\.batch_size = 15: accepted: a multiple of the 2 processes that share"
    ):
        run_experiment("baseline", tiny_recipe(batch_size=15), lesson, files, outputs, torch.device("cpu"), 60)


def test_shares_make_up_the_batch() -> None:
    batch = torch.arange(14).view(7, 2)
    for size in (1, 2, 3):
        shares = [World(rank, size).share(batch) for rank in range(size)]
        assert torch.equal(torch.cat(shares), batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
