"""Figures as people read them and, at the end, as one JSON line each."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from leanresnet.compute.device import describe

FIGURES: list[dict[str, Any]] = []


def record(name: str, value: float, unit: str, **context: object) -> None:
    """Note a figure; `context` says how it came about (batch, repetitions, its parts)."""
    FIGURES.append({"name": name, "value": float(f"{value:.4g}"), "unit": unit, **context})
    print(f"{name}: {value:.4g} {unit}  {', '.join(f'{key} {entry}' for key, entry in context.items())}", flush=True)


def print_all(device: torch.device) -> None:
    """One JSON line a figure, each with the machine it belongs to."""
    machine = {"device": describe(device), "torch": torch.__version__, "python": platform.python_version()}
    for figure in FIGURES:
        print(json.dumps({**figure, **machine}, allow_nan=False))


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
