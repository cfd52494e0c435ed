"""Where to compute, in which precision, and how close to the hardware."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

from leanresnet.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """`auto` takes a CUDA device if there is one; of several processes that torchrun started, each has its own.

    Raises:
        ConfigError: an unknown name, or CUDA asked for and absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device = {name!r}: expected: auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices found"
        raise ConfigError(f"device = {name!r}: {found}, expected here: auto or cpu")
    return device


def keep_freed_memory() -> bool:
    """Let this process reuse the memory of freed tensors instead of handing it back to the system each time.

    glibc maps every large block anew, and a training step on a CPU then spends up to a third
    of its time on page faults (docs/performance.md). Says whether the C library took it; only
    glibc knows the call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    settings = [(m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 2**28)]
    taken = [mallopt(key, value) for key, value in settings]
    return all(taken)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware: Ampere or newer, AMX or AVX512-BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return bool(features.get("amx_bf16") or features.get("avx512_bf16"))


@contextmanager
def backend_settings(device: torch.device, deterministic: bool) -> Iterator[None]:
    """torch's process-wide settings for a training; afterwards they are what they were before.

    On a GPU, cudnn chooses the fastest kernels by trying them, and what remains in float32
    uses TF32; `deterministic` admits only kernels that give the same bytes again, there and on
    the CPU. Two settings stay: a CPU training keeps the memory of freed tensors, and a GPU's
    products have a workspace of fixed size.
    """
    if device.type == "cpu":
        keep_freed_memory()
    else:
        # cuBLAS reads this once, at the first product, deterministic or not.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    filling: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        filling.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
    )
    torch.use_deterministic_algorithms(deterministic)
    # A guard against reading memory that nothing wrote: no training here does, and it costs a pass over each tensor.
    filling.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        filling.fill_uninitialized_memory = before[1]
        torch.backends.cudnn.benchmark = before[2]
        torch.set_float32_matmul_precision(before[3])


def exact_float32() -> AbstractContextManager[object]:
    """A context in which a GPU's convolutions are float32 and not TF32, which is torch's default for them."""
    context: AbstractContextManager[object] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return context


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
