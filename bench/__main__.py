"""`python -m bench`: every figure of docs/performance.md that the machine at hand can give."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import torch

from bench import contention as sharing
from bench import gpu, operations, overheads, speed
from bench import packing as side_by_side
from bench import scale as scaling
from bench.options import Run
from bench.report import print_all
from leanresnet.compute.device import backend_settings, choose_device
from leanresnet.errors import LeanResNetError

Command = Callable[..., None]
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
compile_option = click.option("--compile/--eager", "compile_it", default=True, show_default=True)
steps_option = click.option("--steps", type=int, help="Steps a measurement.  [default: 4 on a CPU, 200 on a GPU]")


@click.group()
def bench() -> None:
    """Measure the training engine; the last lines are one JSON object a figure."""


def _figures(chosen: torch.device, measure: Callable[[int], None], steps: int | None = None) -> None:
    # A compiler with an empty cache, so that its time is what a first run pays.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        try:
            with backend_settings(chosen, deterministic=False):
                measure(steps or (200 if chosen.type == "cuda" else 4))
        finally:
            print_all(chosen)


@bench.command("all")
@device_option
@steps_option
def run_all(device: str, steps: int | None) -> None:
    """Everything but the time to 93.75 %, which needs CIFAR-10."""
    chosen = choose_device(device)

    def measure(count: int) -> None:
        speed.throughput(chosen, count)
        speed.efficiency(chosen, count, compile_it=True)
        speed.hardware(chosen, count, compile_it=True)
        speed.determinism(chosen, count, compile_it=True)
        speed.snapshots(chosen)
        speed.growth(chosen, count, compile_it=chosen.type == "cuda")
        overheads.overheads()

    _figures(chosen, measure, steps)


@bench.command()
@device_option
@steps_option
def throughput(device: str, steps: int | None) -> None:
    """Against the plain loop."""
    chosen = choose_device(device)
    _figures(chosen, lambda count: speed.throughput(chosen, count), steps)


@bench.command()
@device_option
@steps_option
@compile_option
def efficiency(device: str, steps: int | None, compile_it: bool) -> None:
    """Against the bare step."""
    chosen = choose_device(device)
    _figures(chosen, lambda count: speed.efficiency(chosen, count, compile_it), steps)


@bench.command()
@device_option
@steps_option
@compile_option
def hardware(device: str, steps: int | None, compile_it: bool) -> None:
    """Against a matrix product, and a profile by operation."""
    chosen = choose_device(device)
    _figures(chosen, lambda count: speed.hardware(chosen, count, compile_it), steps)


@bench.command()
@device_option
@steps_option
@compile_option
def determinism(device: str, steps: int | None, compile_it: bool) -> None:
    """The price of `deterministic: true`."""
    chosen = choose_device(device)
    _figures(chosen, lambda count: speed.determinism(chosen, count, compile_it), steps)


@bench.command()
@device_option
def snapshots(device: str) -> None:
    """The price of going on after a kill."""
    chosen = choose_device(device)
    _figures(chosen, lambda _: speed.snapshots(chosen))


@bench.command()
@device_option
@steps_option
@click.option("--compile/--eager", "compile_it", default=False, show_default=True)
def growth(device: str, steps: int | None, compile_it: bool) -> None:
    """Over batch size and width."""
    chosen = choose_device(device)
    _figures(chosen, lambda count: speed.growth(chosen, count, compile_it), steps)


@bench.command("overheads")
def run_overheads() -> None:
    """Commands, stages and a pipeline with nothing to do."""
    overheads.overheads()
    print_all(torch.device("cpu"))


@bench.command()
@click.option("--preset", type=click.Choice(sharing.PRESETS), default="demo", show_default=True)
@click.option("--seconds", type=click.FloatRange(0), default=10.0, show_default=True, help="Of each measurement.")
def contention(preset: str, seconds: float) -> None:
    """Beside two busy processes against alone, on this CPU."""
    sharing.contention(preset, seconds)
    print_all(torch.device("cpu"))


@bench.command()
@click.option("--batch", type=click.IntRange(1), default=500, show_default=True)
def packing(batch: int) -> None:
    """The gradient of a convolution's weights from images side by side against the plain one, on this CPU."""
    _figures(torch.device("cpu"), lambda _: side_by_side.packing(batch))


@bench.command("operations")
def run_operations() -> None:
    """Operations of a step with each option, which needs no GPU."""
    operations.operations()
    print_all(torch.device("cpu"))


data_argument = click.argument("data", type=click.Path(path_type=Path))
out_option = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
dry_option = click.option("--dry-run", "dry", is_flag=True, help="Try every step on a CPU, as small as it can be.")


@bench.command("gpu")
@data_argument
@out_option
@click.option("--seconds", type=click.FloatRange(min=1), default=540.0, show_default=True, help="Time for all steps.")
@click.option("--step", "steps", type=click.Choice(list(gpu.STEPS)), multiple=True, help="Take these alone.")
@dry_option
@click.pass_context
def run_gpu(context: click.Context, data: Path, out: Path, seconds: float, steps: tuple[str, ...], dry: bool) -> None:
    """Check and measure a GPU, on the splits in DATA (what `dvc repro split` wrote)."""
    run = Run(data, choose_device("cpu" if dry else "cuda"), dry)
    context.exit(0 if gpu.take_all(steps or list(gpu.STEPS), run, out, seconds) else 1)


@bench.command("gpu-step", hidden=True)
@click.argument("name", type=click.Choice(list(gpu.STEPS)))
@data_argument
@out_option
@device_option
@dry_option
@click.pass_context
def gpu_step(context: click.Context, name: str, data: Path, out: Path, device: str, dry: bool) -> None:
    """One step of `gpu`."""
    context.exit(0 if gpu.take(name, Run(data, choose_device(device), dry), out) else 1)


@bench.command()
@click.option("--runs", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--writers", type=click.IntRange(1), default=8, show_default=True, help="Processes at once.")
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True, help="Of each run.")
def scale(runs: int, writers: int, epochs: int) -> None:
    """Many synthetic runs in MLflow: how fast, how large, and whether one is lost."""
    scaling.scale(runs, writers, epochs)
    print_all(torch.device("cpu"))


@bench.command(hidden=True)
@click.argument("runs", type=int)
@click.argument("epochs", type=int)
@click.argument("number", type=int)
def writer(runs: int, epochs: int, number: int) -> None:
    """One process of `scale`."""
    scaling.write(runs, epochs, number)


@bench.command(hidden=True)
@click.argument("preset", type=click.Choice(sharing.PRESETS))
@click.argument("seconds", type=float)
def share(preset: str, seconds: float) -> None:
    """One training of `contention`."""
    print(sharing.images_a_second(preset, seconds))


@bench.command(hidden=True)
@click.argument("batch", type=int)
@click.argument("factor", type=float)
@click.argument("steps", type=int)
@device_option
@compile_option
def one(batch: int, factor: float, steps: int, device: str, compile_it: bool) -> None:
    """One point of `growth`."""
    chosen = choose_device(device)
    with backend_settings(chosen, deterministic=False):
        print(json.dumps(speed.one(batch, factor, steps, chosen, compile_it)))


if __name__ == "__main__":
    try:
        bench()
    except LeanResNetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
