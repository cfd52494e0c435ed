"""The first minutes on a GPU: each step a process with its own limit, whose figures are kept as they come."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bench import gpu_checks, gpu_speed, report
from bench.options import Run
from bench.overheads import own_environment
from bench.trainers import ROOT

FIGURES, LOGS, TABLE = "figures.jsonl", "logs", "table.txt"
# A CPU of two cores compiles this much longer than a machine with a GPU.
DRY_LIMIT = 5


@dataclass(frozen=True)
class Step:
    """A step, and the most seconds that it may take.

    Args:
        cache: name of the compiler's cache, which the steps of this name share. The first step of "target" finds it
            empty, as a first training does.
        alone: whether no other step may run beside it, as where times are measured. Neighbours of which none must be
            alone are taken together.
    """

    run: Callable[[Run], None]
    limit: float
    cache: Literal["checks", "target"] = "checks"
    alone: bool = True


# On 16 cores, the checks took 76 s together, beside 11 compilations that took 44 to 59 s each.
STEPS: dict[str, Step] = {
    "machine": Step(gpu_speed.machine, 40),
    "batches": Step(gpu_checks.batches, 60, alone=False),
    "float32": Step(gpu_checks.float32, 120, alone=False),
    "compiled": Step(gpu_checks.compiled, 150, alone=False),
    "deterministic": Step(gpu_checks.deterministic, 120, alone=False),
    "nan": Step(gpu_checks.nan, 60, alone=False),
    "stopped_compilation": Step(gpu_checks.stopped_compilation, 60, alone=False),
    "logits": Step(gpu_checks.logits, 60, alone=False),
    "synchronisation": Step(gpu_checks.synchronisation, 90, alone=False),
    # It takes all of the memory.
    "out_of_memory": Step(gpu_checks.out_of_memory, 90),
    "throughput_default": Step(partial(gpu_speed.throughput, name="default"), 150),
    "throughput_fast": Step(partial(gpu_speed.throughput, name="fast"), 150),
    "throughput_long": Step(partial(gpu_speed.throughput, name="long"), 150),
    "fast_cold": Step(lambda run: gpu_speed.target(run, "fast", "compiled", 0), 120, "target"),
    "fast_warm": Step(lambda run: gpu_speed.target(run, "fast", "compiled", 1, 2), 120, "target"),
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
    """Take steps in their order, each in a process of its own, for `seconds` in all.

    `out` gets the figures and one line for each step as JSON lines, a table, and a folder with what the steps printed.
    A step that fails, ends its process or exceeds its limit does not keep the next one from being taken; when the time
    is used up, the remaining ones are left out.

    Returns:
        Whether all steps passed.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in (FIGURES, TABLE):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / LOGS, ignore_errors=True)
    end = time.monotonic() + seconds
    done: list[dict[str, Any]] = []
    # The steps have sessions of their own, so without a handler they would outlive this process. An exception in the
    # handler could interrupt `Popen.poll` while it holds its lock, and `wait` would never return.
    stopped: list[int] = []
    ends = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(each, lambda number, _: stopped.append(number)) for each in ends]
    try:
        with tempfile.TemporaryDirectory() as folder:
            for together in _together(names, run):
                # A process that was killed may have left half a file in the compiler's cache.
                broken = sum(line["outcome"] not in ("passed", "failed") for line in done)
                with closing(_take_together(together, run, out, end, f"{folder}/{broken}", stopped)) as lines:
                    for line in lines:
                        done.append(line)
                        report.append(out / FIGURES, line)
                        print(f"{line['name'].partition('/')[2]}: {line['outcome']}, {line['value']} s", flush=True)
    finally:
        for each, handler in zip(ends, before, strict=True):
            signal.signal(each, handler)
        table = make_table(report.read(out / FIGURES))
        (out / TABLE).write_text(table)
        print(f"\n{table}")
    return all(line["outcome"] == "passed" for line in done)


def _together(names: Sequence[str], run: Run) -> list[list[str]]:
    """Divide steps into those that are taken at the same time; in a dry run, for which a CPU is slow, each alone."""
    groups: list[list[str]] = []
    for name in dict.fromkeys(names):
        if groups and not run.dry and not STEPS[name].alone and not STEPS[groups[-1][-1]].alone:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _take_together(
    names: Sequence[str], run: Run, out: Path, end: float, caches: str, stopped: Sequence[int]
) -> Generator[dict[str, Any], None, None]:
    """Take steps at the same time, and yield a line on each as it ends. Closing the generator ends the others.

    A signal in `stopped` ends all of them, and the process.
    """
    begun = time.monotonic()
    limits = {name: min(STEPS[name].limit * (DRY_LIMIT if run.dry else 1), end - begun) for name in names}
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in names:
            if limits[name] > 1:
                cache = {"TORCHINDUCTOR_CACHE_DIR": f"{caches}-{STEPS[name].cache}"}
                running[name] = _start(_command(name, run, out), own_environment() | cache, out / LOGS / f"{name}.txt")
            else:
                yield _line(name, 0.0, "left out")
        while running:
            time.sleep(0.02)
            if stopped:
                sys.exit(128 + stopped[0])
            spent = time.monotonic() - begun
            for name, process in list(running.items()):
                code = process.poll()
                if code is None and spent <= limits[name]:
                    continue
                _kill(running.pop(name))
                if code is None:
                    yield _line(name, spent, f"killed after {limits[name]:.0f} s")
                else:
                    yield _line(name, spent, {0: "passed", 1: "failed"}.get(code, f"ended with {code}"))
    finally:
        for process in running.values():
            _kill(process)


def _line(name: str, spent: float, outcome: str) -> dict[str, Any]:
    return {"name": f"step/{name}", "value": round(spent, 1), "unit": "s", "outcome": outcome}


def _command(name: str, run: Run, out: Path) -> list[str]:
    command = [sys.executable, "-m", "bench", "gpu-step", name, str(run.data.resolve()), "--out", str(out.resolve())]
    return [*command, "--device", str(run.device), *(["--dry-run"] if run.dry else [])]


def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, which prints into `log`."""
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment = environment | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as file:
        print(f"$ {' '.join(command)}", file=file, flush=True)
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


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
