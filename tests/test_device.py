"""The engine's settings, compilation and its fallback."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MEAN, STD, pooling_model, random_images, tiny_model
from torch import Tensor
from torch._inductor.exc import InductorError

from leanresnet.config import Model
from leanresnet.device import autocast, compiled, engine, exact_float32
from leanresnet.errors import StoppedError
from leanresnet.losses import CrossEntropy, DistillationLoss
from leanresnet.models.resnet import ResNet, build_model
from leanresnet.trainer import objective_of

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
    with engine(torch.device(place), deterministic):
        assert state() == {
            "deterministic": deterministic,
            "filled": False,
            "autotuned": not deterministic,
            "products": "high" if place == "cuda" else "highest",
        }
    assert state() == before


def test_an_engine_puts_torch_back_when_training_fails() -> None:
    def fail() -> None:
        with engine(CPU, deterministic=True):
            raise RuntimeError("inside")

    before = state()
    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert state() == before


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_freed_memory_is_kept_and_used_again() -> None:
    """Page faults of 30 large tensors in turn, in a process of their own."""
    script = (
        "import resource, sys, torch; from leanresnet.device import keep_freed_memory\n"
        "if sys.argv[1] == 'kept': assert keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(8): torch.ones(1 << 24)\n"
        "before = faults()\n"
        "for _ in range(30): torch.ones(1 << 24)\n"
        "print(faults() - before)"
    )
    plain, kept = (
        int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=True).stdout)
        for how in ("plain", "kept")
    )
    assert kept * 10 < plain


def three_steps(
    net: ResNet, compile_it: bool, precision: str = "fp32", teacher: ResNet | None = None
) -> tuple[list[float], list[Tensor]]:
    criterion = DistillationLoss(teacher, 0.5, 4.0, None, 0.1) if teacher else CrossEntropy(0.1)
    objective = objective_of(net.train(), criterion)
    objective = compiled(objective) if compile_it else objective
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05)
    labels, losses, hits = torch.arange(8) % 10, [], []
    for step in range(3):
        images = random_images(8, seed=step).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        with autocast(CPU, precision):
            loss, right = objective(images, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        hits.append(right)
    return losses, [p.detach() for p in net.parameters()] + hits


@pytest.mark.parametrize(
    ("model", "taught", "precision", "tolerance"),
    [
        (tiny_model(), True, "fp32", 1e-4),
        (pooling_model(), False, "fp32", 1e-4),
        (pooling_model(), False, "bf16", 2e-2),
    ],
)
def test_compiled_and_eager_training_agree(
    model: Model, taught: bool, precision: str, tolerance: float, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three steps, losses and weights; a compiled graph rounds to bf16 less often, and each time alike."""
    teacher = build_model(tiny_model(channels=(12, 16)), MEAN, STD, seed=9) if taught else None
    losses, weights = three_steps(build_model(model, MEAN, STD, seed=1), False, precision, teacher)
    fast_losses, fast_weights = three_steps(build_model(model, MEAN, STD, seed=1), True, precision, teacher)
    assert "torch.compile failed" not in capfd.readouterr().err
    assert fast_losses == pytest.approx(losses, abs=tolerance)
    for found, expected in zip(fast_weights, weights, strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    again_losses, again_weights = three_steps(build_model(model, MEAN, STD, seed=1), True, precision, teacher)
    assert again_losses == fast_losses
    assert all(torch.equal(one, other) for one, other in zip(again_weights, fast_weights, strict=True))


def no_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Neither this process nor the disk has a compiled graph."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    torch.compiler.reset()


def test_without_a_compiler_training_goes_on_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    no_cache(monkeypatch, tmp_path)
    losses, _ = three_steps(build_model(tiny_model(channels=(12, 20)), MEAN, STD, seed=1), compile_it=True)
    eager, _ = three_steps(build_model(tiny_model(channels=(12, 20)), MEAN, STD, seed=1), compile_it=False)
    assert losses == eager
    said = [line for line in capfd.readouterr().err.splitlines() if "torch.compile failed" in line]
    assert len(said) == 1
    assert "training goes on without it" in said[0]


def test_a_backward_graph_that_cannot_be_compiled_falls_back_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise InductorError(RuntimeError("no backward here"), None)

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_backward", refuse)
    no_cache(monkeypatch, tmp_path)
    losses, _ = three_steps(build_model(tiny_model(channels=(12, 24)), MEAN, STD, seed=1), compile_it=True)
    eager, _ = three_steps(build_model(tiny_model(channels=(12, 24)), MEAN, STD, seed=1), compile_it=False)
    assert losses == eager
    assert capfd.readouterr().err.count("torch.compile failed") == 1


def test_a_compiler_that_a_signal_ends_ends_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its next steps would be other ones than those of the training that goes on later."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise InductorError(RuntimeError("g++ was interrupted"), None)

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_backward", refuse)
    monkeypatch.setattr("leanresnet.device.requested_stop", lambda: signal.SIGINT)
    no_cache(monkeypatch, tmp_path)
    with pytest.raises(StoppedError, match=r"^stopped by SIGINT during torch\.compile$") as caught:
        three_steps(build_model(tiny_model(channels=(12, 24)), MEAN, STD, seed=1), compile_it=True)
    assert caught.value.exit_code == 130


def test_a_gpu_has_a_fixed_workspace_whatever_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS looks once, and a later deterministic recipe in the same process would be refused."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with engine(torch.device("cuda"), deterministic=False):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_cpu_training_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr("leanresnet.device.keep_freed_memory", lambda: kept.append(True))
    for place in ("cuda", "cpu"):
        with engine(torch.device(place), deterministic=False):
            pass
    assert kept == [True]


def test_exact_float32_is_not_tf32() -> None:
    assert torch.backends.cudnn.allow_tf32
    with exact_float32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_a_mistake_in_the_function_itself_is_not_swallowed(capfd: pytest.CaptureFixture[str]) -> None:
    def broken(x: Tensor) -> Tensor:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        compiled(broken)(torch.zeros(1))
    assert "torch.compile failed" not in capfd.readouterr().err
