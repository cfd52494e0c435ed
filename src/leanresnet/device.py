"""Where to compute and in which precision: a place, not a hyperparameter."""

import platform
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from leanresnet.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """`auto` takes a CUDA device if there is one.

    Raises:
        ConfigError: an unknown name, or CUDA asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device = {name!r}: accepted: auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices found"
        raise ConfigError(f"device = {name!r}: {found}, accepted here: auto or cpu")
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware: Ampere or newer, AMX or AVX512-BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return bool(features.get("amx_bf16") or features.get("avx512_bf16"))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """A context for forward passes: float32 weights, bfloat16 products where `precision` says so."""
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def describe(device: torch.device) -> str:
    """The device's name as a person knows it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
