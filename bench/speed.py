"""Images a second: against the plain loop, against the bare step, against the hardware, and how they grow."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.options import changed, preset
from bench.report import alternate, median, record, seconds
from bench.trainers import WARM_UP_STEPS, Engine, Mode, PlainProcess, random_split
from leanresnet.compute.device import backend_settings
from leanresnet.config.schema import Recipe
from leanresnet.jobs.snapshots import Snapshots
from leanresnet.models.complexity import count_macs, count_parameters
from leanresnet.tracking import run as reporting
from leanresnet.training.averaging import MovingAverage
from leanresnet.training.loader import EvalBatches
from leanresnet.training.loop import fit
from leanresnet.training.state import TrainState
from leanresnet.training.validation import MEASURES
from pipeline.options import SNAPSHOT_SECONDS

REPEATS = 5


def default(batch_size: int) -> Recipe:
    """The default's baseline, the study's network, with this batch size."""
    return changed(preset("default"), {"batch_size": batch_size})


def mode(compile_it: bool) -> Mode:
    return "compiled" if compile_it else "eager"


def throughput(device: torch.device, steps: int) -> None:
    """The trainer, compiled and eager, over the plain loop: the study's network, batch 128, alternating."""
    recipe = default(128)
    eager, fast = Engine(recipe, steps, device, "eager"), Engine(recipe, steps, device, "compiled")
    eager.warm_up()
    compiling = seconds(fast.warm_up, device)

    def images_a_second(trainer: Engine) -> float:
        return trainer.images / seconds(trainer.run, device)

    with PlainProcess(recipe, steps, device) as plain:
        found = alternate(
            {
                "plain": plain.images_a_second,
                "eager": lambda: images_a_second(eager),
                "compiled": lambda: images_a_second(fast),
            },
            REPEATS,
        )
    context = {"batch": 128, "steps": steps, "repetitions": REPEATS}
    for name, values in found.items():
        record(f"throughput/{name}", median(values), "images/s", **context, slowest=round(min(values), 1))
    for name in ("eager", "compiled"):
        ratios = [ours / theirs for ours, theirs in zip(found[name], found["plain"], strict=True)]
        record(f"throughput/{name}_over_plain", median(ratios), "x", **context)
    saved = 45_000 / median(found["eager"]) - 45_000 / median(found["compiled"])
    spent = compiling - WARM_UP_STEPS * 128 / median(found["compiled"])
    record("compile/seconds", spent, "s", batch=128)
    record("compile/saves", saved, "s an epoch of 45,000", **context)
    if saved > 0:
        record("compile/repaid_after", spent / saved, "epochs of 45,000")


def efficiency(device: torch.device, steps: int, compile_it: bool) -> None:
    """The whole trainer (data, augmentation, validation of one batch, tracking, best weights) over the bare step."""
    trainer = Engine(default(128), steps, device, mode(compile_it))
    trainer.warm_up()
    ratios, spent = [], []
    with tempfile.TemporaryDirectory() as folder:
        moments: list[float] = []
        with tracking_in(folder), reporting.start_run("bench", {}, {}) as run:

            def log(metrics: dict[str, float], epoch: int) -> None:
                run.log_metrics(metrics, epoch)
                # The bare steps run between two epochs, so that both see the same machine.
                begun = time.perf_counter()
                if moments:
                    spent.append(begun - moments[-1])
                    bare = seconds(trainer.bare, device)
                    ratios.append(bare / spent[-1])
                moments.append(time.perf_counter())

            validation = EvalBatches(random_split(16), 16, device)
            fit(
                trainer.net,
                trainer.batches,
                validation,
                trainer.loop,
                epochs=REPEATS + 1,
                seed=0,
                ema_decay=None,
                measures=dict(MEASURES),
                log_metrics=log,
            )
    context = {"batch": 128, "steps": steps, "repetitions": REPEATS, "compiled": compile_it}
    record("efficiency/trainer_over_bare_step", median(ratios), "x", **context)
    record("efficiency/images_per_second", trainer.images / median(spent), "images/s", **context)


@contextmanager
def tracking_in(folder: str) -> Iterator[None]:
    """MLflow's database in `folder`, whatever server the environment names."""
    names = ("DVC_ROOT", "MLFLOW_TRACKING_URI")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ["DVC_ROOT"] = folder
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def hardware(device: torch.device, steps: int, compile_it: bool) -> None:
    """Floating-point operations a second of training, over those of a matrix product, and where the rest goes."""
    recipe = default(128)
    trainer = Engine(recipe, steps, device, mode(compile_it))
    trainer.warm_up()
    with trainer.loop.autocast:
        bf16 = torch.is_autocast_enabled(device.type)
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    (a @ a).sum()
    # Forward, and twice as much backward; two operations a multiply-accumulate.
    work = 6 * count_macs(recipe.model) * trainer.images
    found = alternate(
        {
            "product": lambda: 2 * size**3 / seconds(lambda: a @ a, device),
            "training": lambda: work / seconds(trainer.run, device),
        },
        REPEATS,
    )
    context = {"precision": "bf16" if bf16 else "fp32", "repetitions": REPEATS, "compiled": compile_it}
    record("hardware/matrix_product", median(found["product"]) / 1e9, "GFLOP/s", size=size, **context)
    record("hardware/training", median(found["training"]) / 1e9, "GFLOP/s", batch=128, **context)
    shares = [ours / most for ours, most in zip(found["training"], found["product"], strict=True)]
    record("hardware/training_over_product", median(shares), "x", **context)
    _profile(device, steps)


def _profile(device: torch.device, steps: int) -> None:
    """Self time by operation, eager, so that each operation has its name."""
    trainer = Engine(default(128), steps, device, "eager")
    trainer.warm_up()
    rows = profiled(trainer.run, device)
    total = sum(spent for _, spent, _ in rows)
    for name, spent, calls in rows[:10]:
        record(f"profile/{name}", 100 * spent / total, "% of a step", calls=calls // steps)


def profiled(run: Callable[[], object], device: torch.device) -> list[tuple[str, float, int]]:
    """Name, self time in microseconds and calls of each operation, most time first; on a GPU of each kernel."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        run()
    # On a GPU the rows of kernels; the operations that launched them carry the same time again.
    place = "CUDA" if device.type == "cuda" else "CPU"
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = [row for row in found.key_averages() if row.device_type.name == place and not row.is_user_annotation]
    return sorted(((row.key, getattr(row, key), row.count) for row in rows), key=lambda row: row[1], reverse=True)


def determinism(device: torch.device, steps: int, compile_it: bool) -> None:
    """The speed with `deterministic: true` over that without."""
    recipe = default(128)

    def images_a_second(deterministic: bool) -> Callable[[], float]:
        with backend_settings(device, deterministic):
            trainer = Engine(recipe, steps, device, mode(compile_it))
            trainer.warm_up()

        def run() -> float:
            with backend_settings(device, deterministic):
                return trainer.images / seconds(trainer.run, device)

        return run

    found = alternate({"free": images_a_second(False), "deterministic": images_a_second(True)}, REPEATS)
    ratios = [slow / free for slow, free in zip(found["deterministic"], found["free"], strict=True)]
    context = {"batch": 128, "steps": steps, "repetitions": REPEATS, "compiled": compile_it}
    record("determinism/deterministic_over_free", median(ratios), "x", **context)


def snapshots(device: torch.device) -> None:
    """What saving a training's state costs at the default period: the study's network with averaged weights."""
    trainer = Engine(default(128), 1, device, "eager")
    trainer.warm_up()
    average = MovingAverage(trainer.net, 0.999)
    progress = TrainState(trainer.net, trainer.loop.optimizer, trainer.loop.schedule, {"average": average}, seed=0)
    progress.end_epoch({"val/accuracy": 0.0}, average.module)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        kept = Snapshots(Path(folder))
        spent = median(
            [seconds(lambda: kept.save({"progress": progress.state_dict()}), device) for _ in range(REPEATS)]
        )
        size = kept.paths()[-1].stat().st_size
    record("snapshot/size", size / 2**20, "MiB")
    record("snapshot/seconds", spent, "s", repetitions=REPEATS)
    record("snapshot/share", 100 * spent / SNAPSHOT_SECONDS, "% of the time", period=SNAPSHOT_SECONDS)


def growth(device: torch.device, steps: int, compile_it: bool) -> None:
    """Images a second and peak memory over batch size and width, each in a process of its own."""
    for batch, factor in [(64, 1.0), (128, 1.0), (256, 1.0), (512, 1.0), (1024, 1.0), (128, 0.5), (128, 2.0)]:
        command = [
            sys.executable,
            "-m",
            "bench",
            "one",
            str(batch),
            str(factor),
            str(max(2, steps * 128 // batch)),
            "--device",
            str(device),
        ]
        done = subprocess.run(
            [*command, "--compile" if compile_it else "--eager"], check=True, capture_output=True, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        context = {"batch": batch, "width": factor, "parameters": found["parameters"], "compiled": compile_it}
        record("growth/images_per_second", found["images_per_second"], "images/s", **context)
        for place, peak in found["peak_bytes"].items():
            record(f"growth/peak_{place}_memory", peak / 2**20, "MiB", **context)


def one(batch: int, factor: float, steps: int, device: torch.device, compile_it: bool) -> dict[str, object]:
    """A figure of `growth`: the median of three epochs of `steps` steps."""
    from bench.overheads import peak_bytes

    channels = [round(factor * each) for each in preset("default").model.channels]
    recipe = changed(default(batch), {"max_parameters": None, "model": {"channels": channels}})
    trainer = Engine(recipe, steps, device, mode(compile_it))
    trainer.warm_up()
    speed = median([trainer.images / seconds(trainer.run, device) for _ in range(3)])
    parameters = count_parameters(recipe.model)
    return {"images_per_second": speed, "peak_bytes": peak_bytes(device), "parameters": parameters}
