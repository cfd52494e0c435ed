"""The steps for a GPU, tried on a CPU; what is compared there is equal, so most checks are also seen to fail."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import synthetic_split
from torch._dynamo.exc import TorchDynamoException

from bench import gpu, gpu_checks, gpu_speed, report
from bench.__main__ import bench
from bench.options import OPTIONS, Run, changed, small
from bench.trainers import Engine, Mode, NotCompiledError
from leanresnet.config.schema import Recipe
from leanresnet.data.splits import save_split
from leanresnet.errors import ConfigError
from leanresnet.jobs.snapshots import Snapshots
from leanresnet.training.loader import TrainBatches
from leanresnet.training.state import LossWatch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    monkeypatch.setattr(report, "FIGURES", found)
    return found


@pytest.fixture
def dry(tmp_path: Path) -> Run:
    for name in ("train", "test"):
        save_split(synthetic_split(40), tmp_path / f"{name}.safetensors")
    return Run(tmp_path, CPU, dry=True)


def few(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(gpu_checks, "OPTIONS", {name: OPTIONS[name] for name in names})
    monkeypatch.setattr(gpu_checks, "AUGMENTATIONS", {name: OPTIONS[name].changes for name in names})


def outcomes(figures: list[dict[str, object]]) -> dict[object, object]:
    return {figure["name"]: figure["passed"] for figure in figures}


def scripts(monkeypatch: pytest.MonkeyPatch, **steps: tuple[str, float]) -> None:
    """Steps that are a line of Python each, with a limit."""
    fake = {name: gpu.Step(lambda run: None, limit) for name, (_, limit) in steps.items()}
    monkeypatch.setattr(gpu, "STEPS", fake)
    monkeypatch.setattr(gpu, "DRY_LIMIT", 1)
    monkeypatch.setattr(gpu, "_command", lambda name, run, out: [sys.executable, "-c", steps[name][0]])


def endless(folder: Path) -> str:
    """A step that starts a process, whose number is in `folder`, and never ends."""
    name = str(folder / "pid")
    write = f"pathlib.Path({name + '-'!r}).write_text(str(process.pid)); os.rename({name + '-'!r}, {name!r})"
    start = "import os, pathlib, subprocess, time; process = subprocess.Popen(['sleep', '1000'])"
    return f"{start}; {write}; time.sleep(1000)"


def running(folder: Path) -> bool:
    """Whether the process that `endless` started is still there, after the time that the system takes to end it."""
    try:
        psutil.Process(int((folder / "pid").read_text())).wait(60)
    except psutil.NoSuchProcess:
        return False
    except psutil.TimeoutExpired:
        return True
    return False


def test_no_step_keeps_the_next_one_from_being_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dry: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = "import os; os.kill(os.getpid(), 9)"
    scripts(
        monkeypatch, fails=("raise SystemExit(1)", 60), hangs=(endless(tmp_path), 5), dies=(killed, 60), last=("", 60)
    )
    assert not gpu.take_all(["fails", "hangs", "dies", "last"], dry, tmp_path / "out", 600)
    lines = report.read(tmp_path / "out" / gpu.FIGURES)
    assert [line["outcome"] for line in lines] == ["failed", "killed after 5 s", "ended with -9", "passed"]
    table = (tmp_path / "out" / gpu.TABLE).read_text()
    assert [row.split()[0] for row in table.splitlines() if row.startswith("step/")] == [line["name"] for line in lines]
    assert table in capsys.readouterr().out
    assert not running(tmp_path)


def test_steps_that_measure_no_time_are_taken_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dry: Run
) -> None:
    """Each of two neighbours waits until both have begun; a third exceeds its limit beside them."""
    meeting = f"""import pathlib, time
here = pathlib.Path({str(tmp_path)!r})
(here / NAME).touch()
while not all((here / other).exists() for other in ("one", "two")): time.sleep(0.01)
print("met")"""
    one, two = (meeting.replace("NAME", repr(name)) for name in ("one", "two"))
    scripts(monkeypatch, one=(one, 60), hangs=(endless(tmp_path), 5), two=(two, 60))
    monkeypatch.setattr(gpu, "STEPS", {name: replace(step, alone=False) for name, step in gpu.STEPS.items()})
    assert not gpu.take_all(["one", "hangs", "two", "one"], replace(dry, dry=False), tmp_path / "out", 600)
    lines = {line["name"]: line["outcome"] for line in report.read(tmp_path / "out" / gpu.FIGURES)}
    assert lines == {"step/one": "passed", "step/two": "passed", "step/hangs": "killed after 5 s"}
    logs = {path.stem: path.read_text().splitlines()[-1] for path in (tmp_path / "out" / gpu.LOGS).iterdir()}
    assert (logs["one"], logs["two"]) == ("met", "met")
    assert not running(tmp_path)


def test_where_times_are_measured_nothing_runs_beside(dry: Run) -> None:
    checks = ["batches", "float32", "compiled", "deterministic", "nan", "stopped_compilation", "logits"]
    groups = gpu._together(list(gpu.STEPS), replace(dry, dry=False))
    assert [group for group in groups if len(group) > 1] == [[*checks, "synchronisation"]]
    assert gpu._together(["nan", "logits", "nan"], dry) == [["nan"], ["logits"]]


def test_sigterm_ends_the_steps_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dry: Run) -> None:
    stop = f"""import os, pathlib, signal, time
while not pathlib.Path({str(tmp_path / "pid")!r}).exists(): time.sleep(0.01)
os.kill({os.getpid()}, signal.SIGTERM)
time.sleep(1000)"""
    scripts(monkeypatch, hangs=(endless(tmp_path), 600), stops=(stop, 600))
    monkeypatch.setattr(gpu, "STEPS", {name: replace(step, alone=False) for name, step in gpu.STEPS.items()})
    with pytest.raises(SystemExit) as ended:
        gpu.take_all(["hangs", "stops"], replace(dry, dry=False), tmp_path / "out", 600)
    assert ended.value.code == 143
    assert not running(tmp_path)
    assert (tmp_path / "out" / gpu.TABLE).exists()


def test_steps_are_left_out_when_the_time_is_used_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dry: Run) -> None:
    scripts(monkeypatch, hangs=("import time; time.sleep(1000)", 1000), last=("", 60))
    (tmp_path / "out" / gpu.LOGS).mkdir(parents=True)
    (tmp_path / "out" / gpu.LOGS / "last.txt").write_text("of an earlier benchmark")
    gpu.take_all(["hangs", "last"], dry, tmp_path / "out", 2)
    lines = report.read(tmp_path / "out" / gpu.FIGURES)
    assert [line["outcome"] for line in lines] == ["killed after 2 s", "left out"]
    assert [path.name for path in (tmp_path / "out" / gpu.LOGS).iterdir()] == ["hangs.txt"]


def test_a_step_that_was_killed_leaves_no_half_file_to_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dry: Run
) -> None:
    say = f"import os; open({str(tmp_path / 'said')!r}, 'a').write(os.environ['TORCHINDUCTOR_CACHE_DIR'] + ' ')"
    scripts(monkeypatch, one=(say, 60), two=(say, 60), dies=("import os; os.kill(os.getpid(), 9)", 60), last=(say, 60))
    gpu.take_all(["one", "two", "dies", "last"], dry, tmp_path / "out", 600)
    one, two, last = (tmp_path / "said").read_text().split()
    assert one == two != last


def test_a_figure_is_kept_before_the_step_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dry: Run) -> None:
    seen: list[dict[str, object]] = []

    def step(run: Run) -> None:
        report.record("a", 1.0, "s")
        report.check("b", 2.0, 1.0, "x")
        report.check("c", float("nan"), 1.0, "x")
        seen.extend(report.read(tmp_path / gpu.FIGURES))
        raise ValueError("two\nlines")

    monkeypatch.setattr(gpu, "STEPS", {"one": gpu.Step(step, 1)})
    assert not gpu.take("one", dry, tmp_path)
    assert [(each["name"], each.get("passed")) for each in seen] == [("a", None), ("b", False), ("c", False)]
    last = report.read(tmp_path / gpu.FIGURES)[-1]
    assert (last["name"], last["passed"], last["error"]) == ("step/one", False, "ValueError: two lines")
    assert last["torch"] == torch.__version__
    assert "1 checks passed" not in gpu.make_table(report.read(tmp_path / gpu.FIGURES))


def test_a_cpu_is_refused_unless_it_is_a_dry_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="0 CUDA devices found"):
        bench.main(["gpu", str(tmp_path), "--out", str(tmp_path / "out")], standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_it_starts_without_mlflow_and_dvc(tmp_path: Path) -> None:
    """A process for the real command: its arguments, and the path that it finds the code by."""
    absent = "import sys; sys.modules.update(mlflow=None, dvc=None, sqlalchemy=None); sys.argv[0] = 'bench'; "
    command = gpu._command("nan", Run(tmp_path, CPU, dry=True), tmp_path)
    start = f"{absent}import runpy; runpy.run_module('bench', run_name='__main__')"
    process = gpu._start([command[0], "-c", start, *command[3:]], {"OMP_NUM_THREADS": "1"}, tmp_path / "log")
    try:
        assert process.wait(300) == 0, (tmp_path / "log").read_text()
    finally:
        gpu._kill(process)
    assert [figure["name"] for figure in report.read(tmp_path / gpu.FIGURES)] == ["nan/steps_until_seen"]


def test_other_bytes_of_a_batch_are_seen(
    monkeypatch: pytest.MonkeyPatch, dry: Run, figures: list[dict[str, object]]
) -> None:
    few(monkeypatch, "cutmix", "trivial_augment")
    gpu_checks.batches(dry)
    assert outcomes(figures) == {"batches/cutmix": True, "batches/trivial_augment": True}
    made = iter(range(100))

    class Other(TrainBatches):
        def __init__(self, split, size, augmentation, seed, device, progressive) -> None:  # type: ignore[no-untyped-def]
            super().__init__(split, size, augmentation, next(made), device, progressive)

    monkeypatch.setattr(gpu_checks, "TrainBatches", Other)
    gpu_checks.batches(dry)
    assert outcomes(figures) == {"batches/cutmix": False, "batches/trivial_augment": False}


def test_other_losses_are_seen(monkeypatch: pytest.MonkeyPatch, dry: Run, figures: list[dict[str, object]]) -> None:
    few(monkeypatch, "attention", "stochastic_depth")
    gpu_checks.float32(dry)
    assert outcomes(figures) == {"float32/attention": True}
    made = iter(range(100))

    def other(recipe: Recipe, *rest: Any) -> Engine:
        return Engine(changed(recipe, {"seed": next(made)}), *rest)

    monkeypatch.setattr(gpu_checks, "Engine", other)
    gpu_checks.float32(dry)
    assert outcomes(figures) == {"float32/attention": False}


def test_other_bytes_of_a_training_are_seen(tmp_path: Path) -> None:
    recipe = changed(small({"ema_decay": 0.9}), {"compile": False, "epochs": 2, "batch_size": 8})
    snapshots = Snapshots(tmp_path)
    first = gpu_checks._train(recipe, CPU, None, snapshots)
    kept = snapshots.load()
    assert kept is not None
    assert (kept["epoch"], len(kept["meter"]["losses"])) == (2, 2)
    assert gpu_checks._train(recipe, CPU, kept, snapshots) == first
    assert gpu_checks._train(changed(recipe, {"seed": 1}), CPU, None, snapshots) != first


def test_a_training_without_a_state_to_resume_from_fails(
    monkeypatch: pytest.MonkeyPatch, dry: Run, figures: list[dict[str, object]]
) -> None:
    monkeypatch.setattr(gpu_checks, "_train", lambda recipe, device, start, snapshots: "the same")
    gpu_checks.deterministic(dry)
    assert len(figures) == 4
    assert not any(figure["passed"] for figure in figures)


def test_a_loss_that_is_never_seen_to_be_nan_fails(
    monkeypatch: pytest.MonkeyPatch, dry: Run, figures: list[dict[str, object]]
) -> None:
    gpu_checks.nan(dry)
    assert outcomes(figures) == {"nan/steps_until_seen": True}
    monkeypatch.setattr(LossWatch, "see", lambda *_: None)
    gpu_checks.nan(dry)
    assert outcomes(figures) == {"nan/steps_until_seen": False}


def test_waiting_is_forbidden_in_all_steps_but_the_first(
    monkeypatch: pytest.MonkeyPatch, dry: Run, figures: list[dict[str, object]]
) -> None:
    few(monkeypatch, "default", "averaged")
    modes: list[bool] = []
    taken: list[int] = []
    monkeypatch.setattr(gpu_checks, "_forbid_waiting", lambda device, forbidden: modes.append(forbidden))
    original = LossWatch.see
    monkeypatch.setattr(LossWatch, "see", lambda *args: taken.append(sum(modes[-1:])) or original(*args))  # type: ignore[func-returns-value]
    gpu_checks.synchronisation(dry)
    # Two steps to warm up, and three of which the last two are watched.
    assert taken == [0, 0, 0, 1, 1] * 2
    assert outcomes(figures) == {"synchronisation/default": True, "synchronisation/averaged": True}

    def waits(*_: object) -> None:
        if modes[-1]:
            raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(LossWatch, "see", waits)
    gpu_checks.synchronisation(dry)
    assert outcomes(figures) == {"synchronisation/default": False, "synchronisation/averaged": False}
    assert not modes[-1]


def test_the_speed_of_a_preset(monkeypatch: pytest.MonkeyPatch, dry: Run, figures: list[dict[str, object]]) -> None:
    monkeypatch.setattr(gpu_speed, "MODES", ("eager",))
    gpu_speed.throughput(dry, "fast")
    assert [figure["name"] for figure in figures] == [
        "throughput/fast",
        "throughput/fast/kernels",
        "throughput/fast/launches",
    ]
    assert all(figure["value"] > 0 for figure in figures)  # type: ignore[operator]


def test_the_time_of_a_whole_training(dry: Run, figures: list[dict[str, object]]) -> None:
    gpu_speed.target(dry, "fast", "eager", 3, 4)
    found = [(figure["name"], figure["seed"], figure["compiled"]) for figure in figures]
    assert found[::4] == [("target/test_accuracy", seed, False) for seed in (3, 4)]
    assert len(found) == 8


@pytest.mark.parametrize("mode", ["compiled", "graphs"])
def test_what_fell_back_is_not_recorded_as_compiled(
    mode: Mode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TorchDynamoException("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **_: broken)
    with pytest.raises(NotCompiledError, match="no compiler"):
        Engine(small({"batch_size": 8}), 2, CPU, mode).warm_up()
    assert "no compiler" in capsys.readouterr().err
    Engine(small({"batch_size": 8}), 2, CPU, "eager").warm_up()
