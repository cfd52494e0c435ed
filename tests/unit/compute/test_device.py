"""The engine's settings."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from imports import ROOT

from leanresnet.compute import device
from leanresnet.compute.device import (
    SMALL_STEP,
    autocast,
    backend_settings,
    choose_device,
    exact_float32,
    has_fast_bf16,
    suitable_threads,
)
from leanresnet.errors import ConfigError
from leanresnet.models.complexity import count_macs
from leanresnet.scaffold.presets import load_preset, names

CPU = torch.device("cpu")
STATE: dict[str, Callable[[], Any]] = {
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "filled": lambda: torch.utils.deterministic.fill_uninitialized_memory,
    "autotuned": lambda: torch.backends.cudnn.benchmark,
    "products": torch.get_float32_matmul_precision,
}


def state() -> dict[str, Any]:
    return {name: read() for name, read in STATE.items()}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_an_engine_sets_torch_and_puts_it_back(
    place: str, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before = state()
    with backend_settings(torch.device(place), deterministic):
        assert state() == {
            "deterministic": deterministic,
            "filled": False,
            "autotuned": not deterministic,
            "products": "high" if place == "cuda" else "highest",
        }
    assert state() == before


def test_an_engine_puts_torch_back_when_training_fails() -> None:
    def fail() -> None:
        with backend_settings(CPU, deterministic=True):
            raise RuntimeError("inside")

    before = state()
    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert state() == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_freed_memory_is_kept_and_used_again() -> None:
    """Page faults of ten large tensors in turn, before and after it, in a process of its own."""
    script = (
        "import resource, torch; from leanresnet.compute.device import keep_freed_memory\n"
        "def faults():\n"
        "    for _ in range(8): torch.ones(1 << 24)\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): torch.ones(1 << 24)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(faults(), keep_freed_memory(), faults())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    plain, accepted, kept = done.stdout.split()
    assert (accepted, int(kept) * 10 < int(plain)) == ("True", True), done.stdout


def test_a_gpu_has_a_fixed_workspace_whatever_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS looks once, and a later deterministic recipe in the same process would be refused."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with backend_settings(torch.device("cuda"), deterministic=False):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_hardware_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, bool]] = []

    def capabilities() -> dict[str, bool]:
        asked.append({"amx_bf16": True})
        return asked[-1]

    monkeypatch.setattr(torch.cpu, "get_capabilities", capabilities)
    caches = (has_fast_bf16, device._cpu_capabilities)
    for function in caches:
        function.cache_clear()
    try:
        assert has_fast_bf16(CPU)
        assert has_fast_bf16(torch.device("cpu"))
        assert device.has_amx()
    finally:
        for function in caches:
            function.cache_clear()
    assert len(asked) == 1


def test_a_cpu_training_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr("leanresnet.compute.device.keep_freed_memory", lambda: kept.append(True))
    for place in ("cuda", "cpu"):
        with backend_settings(torch.device(place), deterministic=False):
            pass
    assert kept == [True]


@pytest.mark.parametrize(
    ("name", "is_launched", "index"), [("cuda", False, 0), ("cuda:1", False, 1), ("cuda", True, 1), ("auto", True, 1)]
)
def test_the_chosen_gpu_is_the_current_one(
    name: str, is_launched: bool, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several processes that torchrun started, it is that of the rank; other launchers set one as well."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    if is_launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert choose_device(name) == torch.device("cuda", index)
    assert current == [torch.device("cuda", index)]
    assert choose_device("cpu") == CPU
    assert len(current) == 1


def test_more_processes_than_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    expected = r"'cuda:1': 1 CUDA devices found, expected here: no more processes than that \(LEANRESNET_NPROC\), or c"
    with pytest.raises(ConfigError, match=expected):
        choose_device("auto")


@pytest.mark.parametrize(("launched", "processes", "refused"), [(True, 2, True), (True, 1, False), (False, 2, False)])
def test_processes_that_share_a_machine_do_not_share_a_gpu(
    launched: bool, processes: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other launchers set the variables of torchrun too, also for a program that is one process."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    one = pytest.raises(
        ConfigError, match=r"^device = 'cuda:1': several processes cannot share a GPU, expected: cuda, for"
    )
    with one if refused else nullcontext():
        assert choose_device("cuda:1") == torch.device("cuda:1")


SMALL, LARGE = SMALL_STEP - 1, SMALL_STEP


@pytest.mark.parametrize(
    ("macs", "kind", "given", "threads"),
    [(SMALL, "cpu", None, 1), (LARGE, "cpu", None, 3), (SMALL, "cpu", "3", 3), (SMALL, "cuda", None, 3)],
)
def test_a_small_step_has_one_thread_unless_the_environment_says_how_many(
    macs: int, kind: str, given: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    number = [3]
    monkeypatch.setattr(torch, "get_num_threads", lambda: number[-1])
    monkeypatch.setattr(torch, "set_num_threads", number.append)
    with suitable_threads(macs, torch.device(kind)):
        assert number[-1] == threads
    assert number[-1] == 3


@pytest.mark.parametrize("preset", names(ROOT / "presets"))
def test_the_small_steps_are_those_of_the_demo(preset: str) -> None:
    recipes = load_preset(preset, ROOT / "presets").params.recipes().values()
    small = {count_macs(each.model) * each.batch_size < SMALL_STEP for each in recipes}
    assert small == {preset == "demo"}


def test_exact_float32_is_not_tf32() -> None:
    assert torch.backends.cudnn.allow_tf32
    with exact_float32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("precision", "is_fast", "computed"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("bf16", False, torch.bfloat16),
        ("fp32", True, torch.float32),
    ],
)
def test_products_are_computed_in_the_precision_of_the_recipe(
    precision: str, is_fast: bool, computed: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_fast_bf16", lambda place: is_fast)
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == computed


def test_a_gpu_that_emulates_bfloat16_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    has_fast_bf16.cache_clear()
    try:
        assert not has_fast_bf16(torch.device("cuda"))
    finally:
        has_fast_bf16.cache_clear()
