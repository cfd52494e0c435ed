"""Real processes that share each batch: they train what one process trains, and stop and go on together."""

import copy
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from conftest import outside_environment
from filelock import FileLock
from forked import run_code
from helpers import synthetic_split, tiny_recipe
from test_resume import COMMAND, beside_progress, newest, prepare, results, the_run, train
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import ReduceOp
from waiting import PATIENCE, wait_for

from leanresnet.compute.distributed import (
    ENDED_EARLY,
    RESUMES,
    DistributedContext,
    convert_sync_batch_norm,
    distributed_context,
)
from leanresnet.data.splits import save_split
from leanresnet.errors import ConfigError, LostProcessError
from leanresnet.jobs import train_job
from leanresnet.jobs.train_job import run_training
from leanresnet.models.complexity import count_macs
from leanresnet.training.losses import CrossEntropy
from leanresnet.training.results import Outputs, read_history
from leanresnet.training.tasks import TrainingTask

STATES = 6 * 3 + 6  # a snapshot a step and an epoch
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "pipeline"]


def prepared(folder: Path, **changes: object) -> Path:
    """A training with CutMix, a proxy that chooses half of a batch, SAM and stochastic depth, in float32."""
    prepare(folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    recipe = params["train"]["baseline"]
    recipe.update({"precision": "fp32", "sync_batch_norm": True, "stochastic_depth": 0.5, **changes})
    recipe["augmentation"]["mix"] = "cutmix"
    recipe["sam"]["rho"] = 0.5
    recipe["selection"]["keep"] = 0.5
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    settings = {"LEANRESNET_SNAPSHOT_SECONDS": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "code")}
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
    lost = "error: a process of this training ended early; the same command resumes from the last snapshot"
    # The first process may report an epoch while it is being ended.
    assert beside_progress(error).splitlines()[-1] == lost
    left = newest(folder)
    launcher = start(folder, *command)
    wait_for(lambda: newest(folder) > left)
    os.kill(launcher.pid, signal.SIGTERM)
    error = launcher.communicate()[1]
    assert launcher.returncode == 143
    # One of the two says it. So soon after its start, MLflow may not have been imported yet, and a line says so.
    said = [line for line in beside_progress(error).splitlines() if not line.startswith("warning: MLflow")]
    assert [line[:37] for line in said] == ["error: stopped by SIGTERM after epoch"]
    assert newest(folder) < STATES
    # The first process waits for another training of the same model, and the second one for the first.
    (lock,) = folder.glob(".work/training/*.lock")
    with FileLock(lock):
        launcher = start(folder, *command)
        assert launcher.stderr is not None
        waits = launcher.stderr.readline()
        assert waits == f"warning: {lock}: another process trains the same model; waiting for it\n"
    assert (beside_progress(launcher.communicate()[1]), launcher.returncode) == ("", 0)
    # A training that resumes after an epoch's last step saves this state again, and what SIGTERM saved may be its own.
    assert STATES <= newest(folder) <= STATES + 2
    assert results(folder) == results(whole)


# The second process makes a mistake while the first one waits for it.
MISTAKEN = """
import os, pathlib, time
waits = pathlib.Path("waits")
if os.environ.get("RANK") == "0":
    from torch import distributed
    connect = distributed.init_process_group
    distributed.init_process_group = lambda *given: (waits.touch(), connect(*given))
if os.environ.get("RANK") == "1":
    os.environ["LEANRESNET_DEVICE"] = "quantum"
    while not pathlib.Path("seen").exists():
        time.sleep(0.01)
"""


def test_an_error_of_another_process_than_the_first_is_said(tmp_path: Path) -> None:
    prepare(tmp_path)
    code = tmp_path / "code" / "sitecustomize.py"
    code.parent.mkdir(exist_ok=True)
    code.write_text(MISTAKEN)
    launcher = start(tmp_path, *COMMAND, "--nproc", "2")
    wait_for((tmp_path / "waits").exists)
    mistaken = worker(launcher, 1)
    (tmp_path / "seen").touch()
    mistaken.wait(PATIENCE)
    # After 30 s, torchrun would kill a process that a signal does not end.
    error = launcher.communicate(timeout=20)[1]
    assert launcher.returncode == ConfigError.exit_code
    said = [line for line in error.splitlines() if line.startswith("error: device")]
    assert said == ["error: device = 'quantum': expected: auto, cpu, cuda or cuda:N"]


def test_the_first_process_may_wait_longer_than_a_broadcast(tmp_path: Path) -> None:
    """In two forks, without torchrun. A broadcast may take twelve rounds, so that a busy machine is not too slow."""
    code = (
        "import datetime, os, sys, time, warnings\n"
        "import torch.distributed as dist\n"
        "from leanresnet.compute.distributed import DistributedContext\n"
        "warnings.simplefilter('ignore')\n"
        "child = os.fork()\n"
        "world = DistributedContext(0 if child else 1, 2)\n"
        "meeting = f'file://{os.getcwd()}/meeting'\n"
        "dist.init_process_group('gloo', init_method=meeting, rank=world.rank, world_size=world.size)\n"
        "dist.barrier()\n"  # one may start seconds after the other
        "dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=6))\n"
        "for _ in range(14 if world.is_main_process else 0):\n"
        "    world.announce(waits=True)\n"
        "    time.sleep(0.5)\n"
        "world.announce(waits=False) if world.is_main_process else world.follow()\n"
        "dist.destroy_process_group()\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)\n"
    )
    done = run_code(code, tmp_path, outside_environment())
    assert (done.stderr, done.returncode) == ("", 0)


def test_the_death_of_torchrun_counts_as_a_signal(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(
        "import pathlib, time\n"
        "from leanresnet.signals import stop_requests\n"
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
    # A file is there before its text is.
    assert wait_for(lambda: (tmp_path / "asked").exists() and (tmp_path / "asked").read_text()) == "SIGTERM"


@pytest.mark.parametrize(
    ("size", "keep", "said"),
    [
        (15, 1.0, "batch_size = 15: expected: a multiple of the 2 processes that share a batch"),
        (10, 0.5, "selection.keep = 0.5 keeps 5 images of a batch, expected: a multiple of the 2 processes that share"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_a_mistake(
    size: int, keep: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_job, "distributed_context", lambda: nullcontext(DistributedContext(0, 2)))
    files = tmp_path / "train.safetensors", tmp_path / "validation.safetensors"
    for seed, file in enumerate(files):
        save_split(synthetic_split(30, seed), file)
    task, outputs = TrainingTask("train@baseline", "here", CrossEntropy(0.0)), Outputs(tmp_path / "m", tmp_path / "r")
    recipe = tiny_recipe(batch_size=size, selection={"keep": keep, "width": 0.5, "blocks": 1})
    with pytest.raises(ConfigError, match=f"^{re.escape('here.' + said)}"):
        run_training("baseline", recipe, task, files, outputs, torch.device("cpu"), 60)


def test_shares_make_up_the_batch() -> None:
    batch = torch.arange(14).view(7, 2)
    for size in (1, 2, 3):
        shares = [DistributedContext(rank, size).shard(batch) for rank in range(size)]
        assert torch.equal(torch.cat(shares), batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


class TwoThreads:
    """Stand-ins of torch.distributed for two threads of this process, each as one process of a training."""

    ReduceOp = ReduceOp

    def __init__(self) -> None:
        # One thread takes both tensors while both wait, so that none is left for the next call.
        self._barrier = threading.Barrier(2, self._stack, timeout=60)
        self._sent: list[Tensor] = []

    def _stack(self) -> None:
        self._both = torch.stack(self._sent)
        self._sent.clear()

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, tensor: Tensor, op: object = ReduceOp.SUM) -> None:
        self._sent.append(tensor.clone())
        self._barrier.wait()
        tensor.copy_(self._both.sum(0) if op == ReduceOp.SUM else self._both.amax(0))


def test_what_nccl_says_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises one error for a process that ended and for a GPU that it cannot use."""
    connected = SimpleNamespace(
        init_process_group=lambda backend: None,
        destroy_process_group=lambda: None,
        get_rank=lambda: 0,
        get_world_size=lambda: 2,
        DistError=dist.DistError,
        DistBackendError=dist.DistBackendError,
    )
    monkeypatch.setattr("leanresnet.compute.distributed.dist", connected)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    errors = {dist.DistBackendError("NCCL: Duplicate GPU"): " (NCCL: Duplicate GPU)", RuntimeError("gloo closed"): ""}
    for error, reason in errors.items():
        said = f"{ENDED_EARLY}{reason}; {RESUMES}"
        with pytest.raises(LostProcessError, match=f"^{re.escape(said)}$"), distributed_context():
            raise error


def test_a_training_of_small_steps_asks_for_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def suitable_threads(macs: int, device: torch.device) -> AbstractContextManager[None]:
        asked.append(macs)
        raise ZeroDivisionError

    monkeypatch.setattr("leanresnet.training.build.suitable_threads", suitable_threads)
    recipe, task = tiny_recipe(), TrainingTask("train@baseline", "train.baseline", CrossEntropy(0.0))
    splits = (tmp_path / "train", tmp_path / "validation")
    for seed, path in enumerate(splits):
        save_split(synthetic_split(seed=seed), path)
    outputs = Outputs(tmp_path / "model", tmp_path / "results")
    with pytest.raises(ZeroDivisionError):
        run_training("baseline", recipe, task, splits, outputs, torch.device("cpu"), 60.0)
    assert asked == [count_macs(recipe.model) * recipe.batch_size]


def test_a_signal_to_one_process_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanresnet.compute.distributed.dist", TwoThreads())
    for received in ((None, signal.SIGTERM), (signal.SIGINT, None), (None, None)):
        with ThreadPoolExecutor(2) as pool:
            asked = list(pool.map(lambda rank, own: DistributedContext(rank, 2).any_rank_signal(own), (0, 1), received))
        assert asked == [next(filter(None, received), None)] * 2


@pytest.mark.parametrize(("mean", "momentum"), [(0, None), (1_000, 0.3), (10_000, 0.1)])
def test_batch_norm_over_two_shares_is_that_over_the_whole_batch(
    mean: int, momentum: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards and backwards, against one process in float64; `mean` is in standard deviations."""
    both = TwoThreads()
    monkeypatch.setattr("leanresnet.compute.distributed.dist", both)
    generator = torch.Generator().manual_seed(0)
    images, gradient = (torch.randn(8, 3, 5, 5, generator=generator) for _ in range(2))
    images[4:] += 0.5  # the shares differ
    images += mean
    whole = nn.BatchNorm2d(3, momentum=momentum)
    with torch.no_grad():
        whole.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        whole.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    norms = [copy.deepcopy(whole), copy.deepcopy(whole)]
    for norm in norms:
        convert_sync_batch_norm(norm)
    shares = [share.clone().requires_grad_() for share in images.chunk(2)]

    def work(rank: int) -> Tensor:
        answer: Tensor = norms[rank](shares[rank])
        answer.backward(gradient.chunk(2)[rank])
        return answer.detach()

    with ThreadPoolExecutor(2) as pool:
        answer = torch.cat(list(pool.map(work, range(2))))
    whole.double()
    expected_input = images.double().requires_grad_()
    expected = whole(expected_input)
    expected.backward(gradient.double())
    # A mean in float32 is known to so much of a standard deviation.
    close = {"rtol": 1e-4, "atol": 1e-5 + mean * 2**-23, "check_dtype": False}
    torch.testing.assert_close(answer, expected.detach(), **close)
    torch.testing.assert_close(torch.cat([share.grad for share in shares]), expected_input.grad, **close)
    for name, parameter in whole.named_parameters():
        found = sum(norm.get_parameter(name).grad for norm in norms)
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-4 + mean * 2**-18, check_dtype=False)
    for name, buffer in whole.named_buffers():
        assert torch.equal(norms[0].get_buffer(name), norms[1].get_buffer(name))
        torch.testing.assert_close(norms[0].get_buffer(name), buffer, rtol=1e-4, atol=1e-6, check_dtype=False)
