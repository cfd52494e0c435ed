"""Figures as people read them, and as one JSON line each."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from leanresnet.compute.device import describe

FIGURES: list[dict[str, Any]] = []
_writers: list[Callable[[dict[str, Any]], None]] = []


def _keep(figure: dict[str, Any]) -> None:
    FIGURES.append(figure)
    for write in _writers:
        write(figure)


def record(name: str, value: float, unit: str, **context: object) -> None:
    """Note a figure; `context` says how it came about (batch, repetitions, its parts)."""
    _keep({"name": name, "value": float(f"{value:.4g}"), "unit": unit, **context})
    print(f"{name}: {value:.4g} {unit}  {', '.join(f'{key} {entry}' for key, entry in context.items())}", flush=True)


def check(name: str, value: float, most: float, unit: str) -> None:
    """Note a figure and whether it is at most `most`; NaN is not."""
    if value != value:
        fail(name, "not a number")
    else:
        record(name, value, unit, most=most, passed=value <= most)


def fail(name: str, error: object) -> None:
    """Note that a check could not be made."""
    _keep({"name": name, "passed": False, "error": " ".join(str(error).split())[:500]})
    print(f"{name}: {error}", flush=True)


@contextmanager
def checking(name: str) -> Iterator[None]:
    """Note an exception inside the block as a failed check, so that the checks after it are still made."""
    try:
        yield
    except Exception as error:
        fail(name, f"{type(error).__name__}: {error}")


@contextmanager
def kept_in(path: Path, device: torch.device) -> Iterator[None]:
    """Append each figure to a file at once, so that those of a process that is killed are kept."""
    machine = _machine(device)

    def write(figure: dict[str, Any]) -> None:
        append(path, {**figure, **machine})

    _writers.append(write)
    try:
        yield
    finally:
        _writers.remove(write)


def append(path: Path, figure: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(figure, allow_nan=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The figures of a file; there are none where no step has begun."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_all(device: torch.device) -> None:
    """One JSON line a figure, each with the machine it belongs to."""
    machine = _machine(device)
    for figure in FIGURES:
        print(json.dumps({**figure, **machine}, allow_nan=False))


def _machine(device: torch.device) -> dict[str, str]:
    return {"device": describe(device), "torch": torch.__version__, "python": platform.python_version()}


def alternate(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """`repeats` rounds in which each measure runs once: all of them share the machine's good and bad minutes."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def median(values: list[float]) -> float:
    return statistics.median(values)


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Wall time until the device has finished."""
    wait(device)
    start = time.perf_counter()
    action()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
