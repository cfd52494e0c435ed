"""What a GPU gives: its own speed, that of training in each mode, and what options cost."""

import platform
import shutil
import subprocess
from functools import partial
from typing import Any

import torch

from bench.options import Run, changed
from bench.report import checking, median, record, seconds
from bench.speed import profiled
from bench.target import time_to_target
from bench.trainers import COMPILE, Engine, Mode
from leanresnet.compute.device import backend_settings
from leanresnet.config.schema import Recipe

REPEATS = 3
MODES: tuple[Mode, ...] = ("eager", "graphs", "compiled")


def machine(run: Run) -> None:
    """Versions, the driver, a kernel of the compiler, and the speed of a matrix product and of a copy."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    versions["cudnn"] = torch.backends.cudnn.version() if run.device.type == "cuda" else None
    print(versions)
    if shutil.which("nvidia-smi"):
        asked = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit"
        subprocess.run(["nvidia-smi", asked, "--format=csv"], check=False)
    size, copied = (64, 2**20) if run.dry else (8192, 2**30)
    with checking("machine/matrix_product"), backend_settings(run.device, deterministic=False):
        for kind in (torch.bfloat16, torch.float32):
            a = torch.randn(size, size, device=run.device, dtype=kind)
            (a @ a).sum()
            spent = median([seconds(partial(torch.matmul, a, a), run.device) for _ in range(10)])
            record("machine/matrix_product", 2 * size**3 / spent / 1e12, "TFLOP/s", size=size, kind=str(kind))
    with checking("machine/copy"):
        source = torch.zeros(copied, dtype=torch.uint8, device=run.device)
        target = torch.empty_like(source)
        target.copy_(source)
        spent = median([seconds(lambda: target.copy_(source), run.device) for _ in range(10)])
        record("machine/copy", 2 * copied / spent / 1e9, "GB/s read and written", bytes=copied)
    with checking("machine/compiler"):
        x = torch.randn(1000, device=run.device)
        first = seconds(lambda: torch.testing.assert_close(torch.compile(_hello)(x), _hello(x)), run.device)
        record("machine/compiler", first, "s until a kernel has run")


def _hello(x: torch.Tensor) -> torch.Tensor:
    return x.sin() * 2 + 1


def throughput(run: Run, name: str) -> None:
    """Images a second of a preset in each mode, for its own batch first, and the share of the time that kernels run.

    The other batches are only measured as CUDA graphs, because each compilation takes up to a minute.
    """
    own = run.recipe(name).batch_size
    sizes = [own] if run.dry else [own, *(size for size in (2000, 500, 128) if size != own)]
    for size in sizes:
        recipe = changed(run.recipe(name), {"batch_size": size})
        for mode in MODES if size == own else ("graphs",):
            with checking(f"throughput/{name}"):
                _speed(run, f"throughput/{name}", recipe, mode, steps=2 if run.dry else max(10, 25_000 // size))


def _speed(run: Run, name: str, recipe: Recipe, mode: Mode, steps: int) -> None:
    torch.compiler.reset()
    with backend_settings(run.device, recipe.deterministic):
        trainer = Engine(recipe, steps, run.device, mode)
        compiling = seconds(trainer.warm_up, run.device)
        spent = median([seconds(trainer.run, run.device) for _ in range(REPEATS)])
        context = {"batch": recipe.batch_size, "mode": mode, "steps": steps}
        record(name, trainer.images / spent, "images/s", **context, warm_up=round(compiling, 1))
        rows = profiled(trainer.run, run.device)
    record(f"{name}/kernels", sum(took for _, took, _ in rows) / 1e6 / spent, "of the time", **context)
    launches = sum(calls for _, _, calls in rows) / steps
    record(f"{name}/launches", launches, "a step", **context, most=[row[0][:60] for row in rows[:5]])


def options(run: Run) -> None:
    """Images a second of the default with averaged weights, with a second pass a step, and with policies."""
    settings: dict[str, dict[str, Any]] = {
        "averaged": {"ema_decay": 0.999},
        "asam": {"sam": {"rho": 0.5}},
        "trivial_augment": {"augmentation": {"auto_augment": "trivial_augment"}},
        "rand_augment": {"augmentation": {"auto_augment": "rand_augment"}},
    }
    for name, changes in settings.items():
        with checking(f"options/{name}"):
            # A policy transforms all images before the first step, so an epoch is that of the real data.
            recipe = changed(run.recipe("default"), changes)
            _speed(run, f"options/{name}", recipe, "compiled", steps=2 if run.dry else 45_000 // recipe.batch_size)


def target(run: Run, name: str, mode: Mode, *seeds: int) -> None:
    """The time and the accuracy of a whole training of a preset, once a seed."""
    time_to_target(run.data, name, changed(run.recipe(name), {"compile": COMPILE[mode]}), seeds, run.device)
