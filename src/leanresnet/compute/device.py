"""The choice of the device and the precision, and torch's process-wide settings for them."""

import ctypes
import importlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

from leanresnet.compute.distributed import is_launched
from leanresnet.errors import ConfigError

# Multiply-accumulates of a batch. The networks of the preset demo are below, and those of all others above.
SMALL_STEP = 1_000_000_000


def choose_device(name: str) -> torch.device:
    """Return the device of a name, and make a CUDA device the current one of this thread.

    torch's functions without a device argument use the current device, such as NCCL's and those that ask what a GPU
    supports.

    Args:
        name: cpu, cuda, cuda:N, or auto for a CUDA device if there is one. For cuda, each of several processes that
            torchrun started gets the device of its local rank.

    Raises:
        ConfigError: if the name is unknown, the CUDA device does not exist, as with more processes than devices, or
            several processes would share it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    shared = name == "cuda" and is_launched()
    if shared:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device = {name!r}: expected: auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        expected = "no more processes than that (LEANRESNET_NPROC), or cpu" if shared and found else "auto or cpu"
        raise ConfigError(f"device = {name!r}: {found} CUDA devices found, expected here: {expected}")
    if device.type == "cuda" and not shared and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1 and is_launched():
        raise ConfigError(f"device = {name!r}: several processes cannot share a GPU, expected: cuda, for one each")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> bool:
    """Make the C library reuse the memory of freed tensors instead of returning it to the system each time.

    By default, glibc maps every large block anew, and a training step on a CPU spends up to a third of its time on
    page faults (docs/performance.md).

    Returns:
        Whether the C library accepted the settings. Only glibc has them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    settings = [(m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 2**28)]
    taken = [mallopt(key, value) for key, value in settings]
    return all(taken)


@cache
def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16: a GPU from Ampere on, a CPU with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_amx() or bool(_cpu_capabilities().get("avx512_bf16"))


def has_amx() -> bool:
    """Return whether the CPU multiplies matrices of bfloat16 by AMX, as Intel's Xeons do from Sapphire Rapids on."""
    return bool(_cpu_capabilities().get("amx_bf16"))


@cache
def _cpu_capabilities() -> Mapping[str, Any]:
    return torch.cpu.get_capabilities()


def set_environment(device: torch.device) -> None:
    """Set the environment variables that torch needs in a training, or adds to the environment itself.

    They are set before a thread is started, see `leanresnet.tracking.connection.set_environment`.
    """
    if device.type == "cuda":
        # cuBLAS reads this variable only at the first product of the process, which may precede a deterministic run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The optimizers import it in any case; the import sets TORCHINDUCTOR_CACHE_DIR.
    importlib.import_module("torch._dynamo")


@contextmanager
def suitable_threads(macs: int, device: torch.device) -> Iterator[None]:
    """Let a training on a CPU have one thread if its steps are small, and restore the number of threads on exit.

    Several threads wait for each other after each operation. In small steps they gain little, and beside other programs
    they wait for most of the time (docs/performance.md). OMP_NUM_THREADS in the environment has priority.

    Args:
        macs: multiply-accumulates of the forward pass of a batch.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and macs < SMALL_STEP and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def backend_settings(device: torch.device, deterministic: bool) -> Iterator[None]:
    """Apply torch's process-wide settings for a training, and restore the previous ones on exit.

    On a GPU, float32 products use TF32, and cuDNN benchmarks its kernels and chooses the fastest. With
    `deterministic`, cuDNN does not benchmark, and only kernels that return the same bytes on each run are allowed, on
    a GPU and on a CPU. Two settings are not restored: a process that trained on a CPU keeps the memory of freed
    tensors, and cuBLAS has a workspace of fixed size.
    """
    set_environment(device)
    if device.type == "cpu":
        keep_freed_memory()
    filling: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        filling.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
    )
    torch.use_deterministic_algorithms(deterministic)
    # Filling guards against reads of uninitialized memory. No training here does that, and it costs a pass per tensor.
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
    """Return a context in which a GPU computes convolutions in float32 instead of TF32, torch's default for them."""
    context: AbstractContextManager[object] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return context


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context for forward passes, in which products of float32 weights are computed in bfloat16 or float32.

    Args:
        precision: bf16, fp32, or auto for bfloat16 where `has_fast_bf16` holds.
    """
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def describe(device: torch.device) -> str:
    """Return the name of the device's model; for a CPU also the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    threads = torch.get_num_threads()
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
