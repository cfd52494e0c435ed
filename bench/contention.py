"""A training that shares its cores with other programs."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bench.options import preset as recipe_of
from bench.report import alternate, median, record
from bench.trainers import ROOT, Engine
from leanresnet.config.schema import CLASSES
from leanresnet.training.build import training_threads

CPU = torch.device("cpu")
PRESETS = ("demo", "cpu", "default")
BUSY, REPEATS = 2, 3
BUSY_SCRIPT = "while True: pass"
# Steps of a measurement between two looks at the clock.
STEPS = 2


def contention(preset: str, seconds: float) -> None:
    """Train beside busy processes and alone, in turn; each training is a process, so that no other work is in it."""
    found = alternate(
        {"alone": lambda: _measured(preset, seconds, 0), "beside": lambda: _measured(preset, seconds, BUSY)}, REPEATS
    )
    with training_threads(recipe_of(preset), CLASSES, CPU):
        context = {"threads": torch.get_num_threads(), "repetitions": REPEATS, "seconds": seconds}
    for name, values in found.items():
        record(f"contention/{preset}_{name}", median(values), "images/s", **context)
    ratios = [alone / beside for alone, beside in zip(found["alone"], found["beside"], strict=True)]
    record(f"contention/{preset}_ratio", median(ratios), "x", **context, busy=BUSY, largest=round(max(ratios), 2))


def images_a_second(preset: str, seconds: float) -> float:
    """The speed of the baseline's training on this CPU, eager, in about `seconds` after a warm-up."""
    recipe = recipe_of(preset)
    with training_threads(recipe, CLASSES, CPU):
        trainer = Engine(recipe, STEPS, CPU, "eager")
        trainer.warm_up()
        begun, images = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < seconds or not images:
            trainer.run()
            images += trainer.images
    return images / spent


def _measured(preset: str, seconds: float, busy: int) -> float:
    with _busy(busy):
        command = [sys.executable, "-m", "bench", "share", preset, str(seconds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return float(done.stdout)


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Run `count` processes that never wait."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY_SCRIPT]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
