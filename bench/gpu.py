"""The first half hour on a GPU: each step a process with its own limit, whose figures are kept as they come."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bench import gpu_checks, gpu_speed, report
from bench.options import Run
from bench.overheads import own_environment
from bench.trainers import ROOT

FIGURES, LOG, TABLE = "figures.jsonl", "log.txt", "table.txt"
# A CPU of two cores compiles this much longer than a machine with a GPU.
DRY_LIMIT = 5


@dataclass(frozen=True)
class Step:
    """A step, and the most seconds that it may take.

    Args:
        cache: whose compiled kernels it finds. The first step of "target" finds none, as a first training does.
    """

    run: Callable[[Run], None]
    limit: float
    cache: Literal["checks", "target"] = "checks"


STEPS: dict[str, Step] = {
    "machine": Step(gpu_speed.machine, 40),
    "batches": Step(gpu_checks.batches, 30),
    "float32": Step(gpu_checks.float32, 40),
    "compiled": Step(gpu_checks.compiled, 120),
    "deterministic": Step(gpu_checks.deterministic, 45),
    "nan": Step(gpu_checks.nan, 25),
    "out_of_memory": Step(gpu_checks.out_of_memory, 90),
    "stopped_compilation": Step(gpu_checks.stopped_compilation, 45),
    "logits": Step(gpu_checks.logits, 25),
    "synchronisation": Step(gpu_checks.synchronisation, 40),
    "throughput_default": Step(partial(gpu_speed.throughput, name="default"), 90),
    "throughput_fast": Step(partial(gpu_speed.throughput, name="fast"), 90),
    "fast_cold": Step(lambda run: gpu_speed.target(run, "fast", "compiled", 0), 90, "target"),
    "fast_warm": Step(lambda run: gpu_speed.target(run, "fast", "compiled", 1, 2), 90, "target"),
    "fast_eager": Step(lambda run: gpu_speed.target(run, "fast", "eager", 0, 1, 2), 120),
    "default": Step(lambda run: gpu_speed.target(run, "default", "compiled", 0), 150),
    "options": Step(gpu_speed.options, 90),
}


def take(name: str, run: Run, out: Path) -> bool:
    """Take a step in this process; return whether no check of it failed."""
    with report.kept_in(out / FIGURES, run.device), report.checking(f"step/{name}"):
        STEPS[name].run(run)
    return all(figure.get("passed", True) for figure in report.FIGURES)


def take_all(names: Sequence[str], run: Run, out: Path, seconds: float) -> bool:
    """Take steps one after the other, each in a process of its own, for `seconds` in all.

    `out` gets three files: the figures and one line for each step as JSON lines, what the processes printed, and a
    table. A step that fails, ends its process or exceeds its limit does not keep the next one from being taken; when
    the time is used up, the remaining ones are left out.

    Returns:
        Whether all steps passed.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in (FIGURES, LOG, TABLE):
        (out / name).unlink(missing_ok=True)
    end = time.monotonic() + seconds
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as caches:
        for name in names:
            step, begun = STEPS[name], time.monotonic()
            limit = min(step.limit * (DRY_LIMIT if run.dry else 1), end - begun)
            # A process that was killed may have left half a file in the compiler's cache.
            broken = sum(line["outcome"] not in ("passed", "failed") for line in done)
            environment = own_environment() | {"TORCHINDUCTOR_CACHE_DIR": f"{caches}/{step.cache}-{broken}"}
            outcome = _outcome(_command(name, run, out), limit, environment, out / LOG) if limit > 1 else "left out"
            spent = round(time.monotonic() - begun, 1)
            done.append({"name": f"step/{name}", "value": spent, "unit": "s", "outcome": outcome})
            report.append(out / FIGURES, done[-1])
            print(f"{name}: {outcome}, {spent} s", flush=True)
    table = make_table(report.read(out / FIGURES))
    (out / TABLE).write_text(table)
    print(f"\n{table}")
    return all(line["outcome"] == "passed" for line in done)


def _command(name: str, run: Run, out: Path) -> list[str]:
    command = [sys.executable, "-m", "bench", "gpu-step", name, str(run.data.resolve()), "--out", str(out.resolve())]
    return [*command, "--device", str(run.device), *(["--dry-run"] if run.dry else [])]


def _outcome(command: list[str], limit: float, environment: dict[str, str], log: Path) -> str:
    """Run a command, kill it and what it started after `limit` seconds, and return how it ended."""
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment = environment | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with log.open("a") as file:
        print(f"\n$ {' '.join(command)}", file=file, flush=True)
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"killed after {limit:.0f} s"
        finally:
            _kill(process)
    return {0: "passed", 1: "failed"}.get(code, f"ended with {code}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started, which have its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def make_table(figures: list[dict[str, Any]]) -> str:
    """The steps, the checks that failed, and the figures that are no checks."""
    steps = [figure for figure in figures if "outcome" in figure]
    failed = [figure for figure in figures if figure.get("passed") is False]
    measured = [figure for figure in figures if "passed" not in figure and "outcome" not in figure]
    machines = sorted({f"{each['device']}, torch {each['torch']}" for each in figures if "device" in each})
    lines = ["; ".join(machines), "", *(_row(each["name"], each["value"], each["outcome"]) for each in steps)]
    passed = sum(figure.get("passed") is True for figure in figures)
    lines += ["", f"{passed} checks passed, {len(failed)} failed"]
    lines += [_row(each["name"], each.get("value", ""), each.get("error", f"> {each.get('most')}")) for each in failed]
    lines += ["", *(_row(_label(each), each["value"], each["unit"]) for each in measured)]
    return "\n".join(lines) + "\n"


def _label(figure: dict[str, Any]) -> str:
    shown = [figure[key] for key in ("preset", "batch", "mode", "seed", "compiled", "kind") if key in figure]
    return " ".join(map(str, [figure["name"], *shown]))


def _row(name: str, value: object, rest: object) -> str:
    return f"{name:60} {value!s:>10} {rest}"
