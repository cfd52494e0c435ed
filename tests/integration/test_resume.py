"""Real processes, killed: the same command goes on, in the same run, and ends as if nothing had happened."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import Checkout, outside_environment, preset_text
from databases import client_of, place_database, runs_of
from forked import path_of_forks, run_program
from helpers import read_only, synthetic_split, tiny_model, tiny_recipe
from imports import ROOT
from mlflow.entities import Run
from waiting import PATIENCE, wait_for

from leanresnet import signals as interruption
from leanresnet.data.splits import load_split, save_split
from leanresnet.training.results import read_history

EPOCHS, STEPS = 6, 3
PROGRESS = re.compile(r"epoch +\d+/\d+  train |best epoch \d+ of \d+, |run: http://127\.0\.0\.1:5000/#/experiments/")
COMMAND = ["train", "baseline", "--train", "data/train.safetensors", "--validation", "data/validation.safetensors"]
COMMAND = ["leanresnet", *COMMAND, "--model", "models/baseline", "--results", "results/baseline"]
# Runs in each process before anything else. It sends itself a signal in the so many-th calls of os.fsync, or so many
# seconds after the first. A file that is written whole takes two calls, for itself and for its folder: 1 and 2 are the
# run's id, 3 to 8 the snapshots of the first three steps, 9 and 10 the history of the epoch that they make up. The end
# of a run waits for MLflow, however long that takes to start.
SIGNAL_ITSELF = f"""
import os, sys, threading
sys.path.append({str(ROOT / "tests")!r})
import variables
variables.refuse_new()
from leanresnet.tracking import run as reporting
reporting.LAST_SECONDS = 900.0
real, calls = os.fsync, 0
at, after = os.environ.get("SIGNAL_AT", "").split(), float(os.environ.get("SIGNAL_AFTER", 0))
def send():
    os.kill(os.getpid(), int(os.environ["SIGNAL"]))
def fsync(descriptor):
    global calls
    calls += 1
    if calls == 1 and after:
        threading.Timer(after, send).start()
    if str(calls) in at:
        send()
    real(descriptor)
os.fsync = fsync
"""
# To log the model in MLflow's own format takes a second, so that not each of these trainings does it.
NO_MODEL = """
if "LOG_MODEL" not in os.environ:
    from leanresnet.tracking import mlflow_client
    assert mlflow_client.log_model
    mlflow_client.log_model = lambda *given: None
"""


def prepare(folder: Path, **changes: object) -> Path:
    """A workspace with tiny splits and a training of 18 steps; `changes` are of its recipe."""
    params = yaml.safe_load(preset_text("demo"))
    (folder / "code").mkdir(parents=True, exist_ok=True)
    (folder / "code" / "sitecustomize.py").write_text(SIGNAL_ITSELF)
    place_database(folder)
    recipe = tiny_recipe(epochs=EPOCHS, batch_size=20, ema_decay=0.9, **changes)
    params["train"]["baseline"] = recipe.model_dump(mode="json")
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    save_split(synthetic_split(60), folder / "data" / "train.safetensors")
    save_split(synthetic_split(40, seed=1), folder / "data" / "validation.safetensors")
    return folder


def train(folder: Path, before: tuple[str, ...] = (), first: str = "", **environment: object) -> tuple[int, str]:
    """The command's exit code and what it said on stderr beside its progress.

    `before` is a command that runs it, and `first` is code that a fork runs before it.
    """
    settings = {
        "LEANRESNET_SNAPSHOT_SECONDS": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(folder / "code"),
        **{name: str(value) for name, value in environment.items()},
    }
    inside = outside_environment(**settings)
    if before or settings["OMP_NUM_THREADS"] != "1":
        done = subprocess.run([*before, *COMMAND], cwd=folder, env=inside, capture_output=True, text=True)
    else:
        done = run_program(*COMMAND[1:], cwd=folder, env=inside, first=SIGNAL_ITSELF + NO_MODEL + first)
    return done.returncode, beside_progress(done.stderr)


def sync(folder: Path) -> None:
    done = run_program("sync", cwd=folder, env=outside_environment())
    assert done.returncode == 0, done.stderr


def beside_progress(said: str) -> str:
    """What a training said on stderr without its epochs and its summary."""
    return "".join(line for line in said.splitlines(keepends=True) if not PROGRESS.match(line))


def die(folder: Path, at: int, number: signal.Signals = signal.SIGKILL) -> tuple[int, str]:
    """Train, with the signal in the so many-th call of os.fsync."""
    return train(folder, SIGNAL_AT=at, SIGNAL=int(number))


def results(folder: Path) -> dict[str, str]:
    files = ["models/baseline/model.safetensors", "models/baseline/model.json", "results/baseline/history.csv"]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}


def the_run(folder: Path) -> tuple[Run, dict[str, list[tuple[int, float]]]]:
    """The only run, and (step, value) of each of its metrics but times and the load of the machine."""
    client = client_of(folder)
    (run,) = runs_of(folder)
    names = [name for name in run.data.metrics if "second" not in name and not name.startswith("system/")]
    return run, {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names}


def newest(folder: Path) -> int:
    """The number of the newest snapshot."""
    names = [path.name for path in folder.glob(".work/training/*/*.pt")]
    return max((int(name[:8]) for name in names), default=0)


def is_dead(process: psutil.Process) -> bool:
    """A zombie is: whoever adopted it has not asked for it yet."""
    return not process.is_running() or status(process) in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def halted(launcher: int) -> list[psutil.Process]:
    """Those of its children that a SIGSTOP holds."""
    children = psutil.Process(launcher).children(recursive=True)
    return [child for child in children if status(child) == psutil.STATUS_STOPPED]


def status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD


class Whole:
    """What the training gives that nobody interrupts."""

    def __init__(self, folder: Path) -> None:
        prepare(folder)
        # Through `env`, so that what the forked processes give is compared with what the program itself gives.
        assert train(folder, ("env",)) == (0, "")
        self.results = results(folder)
        self.run, self.metrics = the_run(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


def assert_is_whole(folder: Path, whole: Whole) -> None:
    assert results(folder) == whole.results
    run, metrics = the_run(folder)
    assert run.info.status == "FINISHED"
    assert metrics == whole.metrics
    assert max(Counter(step for step, _ in metrics["train/loss"]).values()) == 1
    assert run.data.params == whole.run.data.params


def test_killed_between_and_inside_saves_it_ends_the_same(whole: Whole, tmp_path: Path) -> None:
    """In writing the run's id; in writing and after writing the first snapshot and later ones."""
    folder = prepare(tmp_path)
    for at in (1, 3, 24):
        assert die(folder, at)[0] == -signal.SIGKILL
    assert newest(folder) == 9
    assert train(folder, LOG_MODEL=1) == (0, "")
    assert_is_whole(folder, whole)
    assert len(client_of(folder).search_logged_models([the_run(folder)[0].info.experiment_id])) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_the_run_as_killed(
    number: signal.Signals, code: int, whole: Whole, tmp_path: Path
) -> None:
    folder = prepare(tmp_path)
    returned, error = die(folder, 11, number)
    assert returned == code
    # It came while the fourth snapshot was written, that of the first epoch's end; the step after it was the last.
    assert f"error: stopped by {number.name} after epoch 2, step 1; the same command resumes from" in error
    assert newest(folder) == 5
    # So soon after its start, MLflow may not have been imported yet.
    sync(folder)
    assert the_run(folder)[0].info.status == "KILLED"
    # How a training goes on does not depend on the signal.
    if number == signal.SIGTERM:
        assert train(folder) == (0, "")
        assert_is_whole(folder, whole)


def test_a_signal_to_all_processes_of_a_compilation_ends_the_run(tmp_path: Path) -> None:
    """Its compiler never ends by itself, and dies of the same signal, which is no reason to go on without it."""
    folder = prepare(tmp_path, compile=True)
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\ntouch {tmp_path}/compiling\nexec sleep 1000000\n")
    compiler.chmod(0o755)
    settings = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "graphs"), "OMP_NUM_THREADS": "1"}
    settings["TORCH_WARM_POOL"] = "1"  # as users have it
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    training = subprocess.Popen(COMMAND, cwd=folder, env=outside_environment(**settings), **options)
    try:
        wait_for(lambda: (tmp_path / "compiling").exists() or training.poll() is not None)
        os.killpg(training.pid, signal.SIGTERM)
        _, error = training.communicate(timeout=PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(training.pid, signal.SIGKILL)
    assert training.returncode == 143
    assert "error: stopped by SIGTERM during torch.compile; the same command resumes" in error
    for events in folder.glob(".work/journals/*/events.jsonl"):  # what MLflow has not received yet
        assert json.loads(events.read_text().splitlines()[-1])["type"] == "end"
    sync(folder)
    assert the_run(folder)[0].info.status == "KILLED"


def test_two_experiments_that_need_the_same_model_train_it_once(whole: Whole, tmp_path: Path) -> None:
    """As two workers of DVC's queue do, each with outputs of its own."""
    folder = prepare(tmp_path)
    environment = outside_environment(DVC_STAGE="train@baseline", OMP_NUM_THREADS="1", LEANRESNET_SNAPSHOT_SECONDS="0")

    def experiment(name: str) -> subprocess.CompletedProcess[str]:
        places = ["--model", f"models/{name}", "--results", f"results/{name}"]
        return run_program(*COMMAND[1:-4], *places, cwd=folder, env=environment)

    with ThreadPoolExecutor() as both:
        for done in both.map(experiment, ("one", "other")):
            assert done.returncode == 0
            waits = r"(warning: \S+: another process trains the same model; waiting for it\n)?"
            assert re.fullmatch(waits, beside_progress(done.stderr))
    for name in ("models/{}/model.safetensors", "models/{}/model.json", "results/{}/history.csv"):
        one, other = ((folder / name.format(each)).read_bytes() for each in ("one", "other"))
        assert one == other
    run, metrics = the_run(folder)
    assert run.info.status == "FINISHED"
    assert metrics == whole.metrics
    # A snapshot a step and an epoch; the one that waited saved the last once more.
    assert newest(folder) == EPOCHS * STEPS + EPOCHS + 1


def test_a_second_sigint_ends_it_at_once(tmp_path: Path) -> None:
    """While the fourth snapshot is written, before its folder is flushed: not even that is waited for."""
    folder = prepare(tmp_path)
    assert train(folder, SIGNAL_AT="11 12", SIGNAL=int(signal.SIGINT)) == (130, "")
    assert newest(folder) == 4
    assert train(folder)[0] == 0


def test_another_value_does_not_go_on_from_this_state_and_the_dead_run_is_marked(whole: Whole, tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    die(folder, 11)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["train"]["baseline"]["optimizer"]["lr"] *= 2
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    assert train(folder) == (0, "")
    client = client_of(folder)
    new, dead = sorted(runs_of(folder), key=lambda run: -float(run.data.params["optimizer.lr"]))
    assert (new.info.status, dead.info.status) == ("FINISHED", "KILLED")
    history = client.get_metric_history(new.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, EPOCHS + 1))
    assert history[0].value != whole.metrics["train/loss"][0][1]


def test_damaged_states_fall_back_or_end_the_command_and_another_machine_is_named(whole: Whole, tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    die(folder, 11)
    paths = sorted(folder.glob(".work/training/*/*.pt"))
    contents = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.write_bytes(contents[path][:-1])
    code, error = train(folder)
    assert (code, error.count("\n")) == (6, 1)
    assert f"{paths[0].parent}: all 3 snapshots" in error
    paths[0].write_bytes(contents[paths[0]])
    code, error = train(folder, OMP_NUM_THREADS=2)
    assert code == 0
    damaged, environment_diff = error.splitlines()
    assert damaged.startswith(f"warning: {paths[0].parent}: these snapshots are damaged, so an earlier one is used: ")
    assert environment_diff.startswith(
        "warning: this training began in another environment, so its bytes may differ: device: "
    )
    assert "1 thread, now " in the_run(folder)[0].data.tags["leanresnet.resumed_from"]
    # What it had logged before is there too; the values of the training that went on are the last ones.
    losses = [row["train/loss"] for row in read_history(folder / "results/baseline/history.csv")]
    assert dict(the_run(folder)[1]["train/loss"]) == dict(enumerate(losses, 1))


def test_a_larger_epochs_goes_on_from_the_finished_model_only_when_asked(whole: Whole, tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    assert train(folder) == (0, "")
    text = (folder / "params.yaml").read_text()
    params = yaml.safe_load(text)
    params["train"]["baseline"]["epochs"] = EPOCHS + 3
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    # Asked, and killed on the way: it goes on without being asked again.
    assert train(folder, LEANRESNET_EXTEND="1", SIGNAL_AT=5, SIGNAL=int(signal.SIGKILL))[0] == -signal.SIGKILL
    assert train(folder) == (0, "")
    client = client_of(folder)
    child, parent = sorted(runs_of(folder), key=lambda run: -int(run.data.params["epochs"]))
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    losses = [m.value for m in client.get_metric_history(child.info.run_id, "train/loss")]
    assert losses[:EPOCHS] == [value for _, value in whole.metrics["train/loss"]]
    assert len(losses) == EPOCHS + 3
    about = json.loads((folder / "models/baseline/model.json").read_text())
    assert (about["params"]["epochs"], about["params"]["extended_from"]) == (EPOCHS + 3, EPOCHS)
    assert child.data.params["extended_from"] == str(EPOCHS)


def test_nothing_to_extend_is_one_line(tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    code, error = train(folder, LEANRESNET_EXTEND="1")
    assert (code, error.count("\n")) == (2, 1)
    assert f"train.baseline.epochs = {EPOCHS} with --extend: expected: a finished training" in error
    # One that finished but kept no state is none to go on from, and is not trained anew in silence.
    (lock,) = folder.glob(".work/training/*.lock")
    shorter = lock.with_name(lock.name.replace(f"-{EPOCHS}.lock", "-1"))
    shorter.mkdir()
    (shorter / "finished").touch()
    assert train(folder, LEANRESNET_EXTEND="1") == (code, error)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose training was killed with three snapshots; not to be changed."""
    folder = prepare(tmp_path_factory.mktemp("stopped"))
    assert die(folder, 11)[0] == -signal.SIGKILL
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def snapshots(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(".work/training/*/*.pt")}


def test_a_read_only_folder_is_one_line_and_nothing_changed(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    with read_only(tmp_path) as held_to_it:
        code, error = train(tmp_path, held_to_it)
    assert (code, error.count("\n")) == (5, 1)
    assert re.fullmatch(
        rf"error: {tmp_path}/\S+run_id\S*: cannot be written \(Permission denied\); .* 24 bytes\n", error
    )
    assert contents(tmp_path) == contents(stopped)


def test_what_the_system_refuses_to_write_costs_no_snapshot(stopped: Path, whole: Whole, tmp_path: Path) -> None:
    """A limit on the size of files lets a training begin and end, and its snapshots and weights not be written."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
    settings = {"LEANRESNET_SNAPSHOT_SECONDS": 60, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    code, error = train(tmp_path, first=limit, **settings)
    assert code == 5
    # MLflow's line comes whenever its thread has given up.
    weights, mlflow, snapshot = sorted(error.splitlines())
    kept = next(tmp_path.glob(".work/training/*/"))
    refused = r"cannot be written \(File too large\); it takes [\d,]+ bytes"
    assert re.fullmatch(rf"warning: not saved, training continues: {kept}/00000004-\S+: {refused}", snapshot)
    assert mlflow.startswith("warning: MLflow has not received all of this run")
    assert re.fullmatch(rf"error: models/baseline/model.safetensors: {refused}", weights)
    assert snapshots(tmp_path) == snapshots(stopped)
    assert not (tmp_path / "models/baseline/model.safetensors").exists()
    assert train(tmp_path) == (0, "")
    assert_is_whole(tmp_path, whole)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 2 MiB on `folder`, where this user may mount one."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_and_one_that_is_read_only_are_one_line_and_nothing_changed(stopped: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path):
        shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
        ballast = tmp_path / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(tmp_path).free))
        full = train(tmp_path)
        ballast.unlink()
        assert contents(tmp_path) == contents(stopped)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        read_only = train(tmp_path)
        assert contents(tmp_path) == contents(stopped)
    for (code, error), reason in (
        (full, r"No space left on device\); it takes 24 bytes"),
        (read_only, r"Read-only file system\)"),
    ):
        assert (code, error.count("\n")) == (5, 1)
        assert re.fullmatch(rf"error: {tmp_path}/\.work/training/\S+: cannot be written \({reason}\n", error)


def test_a_killed_dvc_leaves_no_stage_behind_and_the_next_goes_on(checkout: Checkout, tmp_path: Path) -> None:
    """The stage has no terminal and gets no signal; it sees that its dvc is gone."""
    folder = tmp_path / "space"
    shutil.copytree(checkout.folder, folder, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".work"))
    shutil.rmtree(folder / "models")
    (folder / "code").mkdir()
    (folder / "code" / "sitecustomize.py").write_text(SIGNAL_ITSELF)
    path = os.pathsep.join(str(folder / part) for part in (".", "src", "code"))
    environment = outside_environment(LEANRESNET_SNAPSHOT_SECONDS="0", PYTHONPATH=path)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    epochs, batch = 3, 32
    shape = tiny_model().model_dump(mode="json")
    params["train"]["baseline"] |= {"epochs": epochs, "batch_size": batch, "model": shape}
    params["train"]["baseline"]["schedule"]["warmup_epochs"] = 1
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    repro = ["dvc", "repro", "train@baseline"]
    # It halts in writing a snapshot, so that it is not over when it looks for its dvc, once a second.
    halting = environment | {"SIGNAL_AT": "41", "SIGNAL": str(int(signal.SIGSTOP))}
    dvc = subprocess.Popen(repro, cwd=folder, env=halting, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: dvc.poll() is not None or halted(dvc.pid))
    assert dvc.poll() is None
    (stage,) = halted(dvc.pid)
    children = psutil.Process(dvc.pid).children(recursive=True)
    os.kill(dvc.pid, signal.SIGKILL)
    dvc.wait()
    time.sleep(interruption.ORPHAN_CHECK_SECONDS)
    stage.resume()
    wait_for(lambda: all(is_dead(child) for child in children))
    left = newest(folder)
    sync(folder)
    assert the_run(folder)[0].info.status == "KILLED"
    environment |= {"PATH": path_of_forks(), "PYTHONPATH": os.pathsep.join(path.split(os.pathsep)[:2])}
    again = subprocess.run(repro, cwd=folder, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    run, metrics = the_run(folder)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in metrics["train/loss"]] == list(range(1, epochs + 1))
    # A snapshot a step and an epoch, and none twice: it did not begin anew.
    steps = len(load_split(folder / "data/train.safetensors")) // batch
    assert left < newest(folder) == epochs * (steps + 1)
    about = json.loads((folder / "models/baseline/model.json").read_text())
    assert run.data.tags["leanresnet.weights_sha256"] == about["sha256"]
    # DVC has the outputs now: to run the stage again is to train again.
    environment |= {"LEANRESNET_SNAPSHOT_SECONDS": "60"}
    subprocess.run([*repro, "--force", "--single-item"], cwd=folder, env=environment, check=True, capture_output=True)
    assert len(runs_of(folder)) == 2
    assert json.loads((folder / "models/baseline/model.json").read_text()) == about
