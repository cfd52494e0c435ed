"""Compilation, its fallback, and when a signal may end it."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import MEAN, STD, pooling_model, random_images, tiny_model
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._functorch import config as functorch
from torch._inductor import config as inductor
from torch._inductor.exc import InductorError

from leanresnet import signals
from leanresnet.compute.compilation import CompiledFunction
from leanresnet.compute.device import autocast, backend_settings
from leanresnet.config.schema import Model
from leanresnet.errors import StoppedError
from leanresnet.models.resnet import ResNet, build_model
from leanresnet.signals import stop_requests
from leanresnet.training.loop import Objective, objective_of
from leanresnet.training.losses import CrossEntropy, DistillationLoss

CPU = torch.device("cpu")


def one_layer(channels: int) -> Model:
    return tiny_model(layers=1, blocks=(1,), channels=(channels,), kernels=(3,), skip_kernels=(1,), pool=32)


def objective_for(net: ResNet, teacher: ResNet | None = None) -> Objective:
    return objective_of(net.train(), DistillationLoss(teacher, 0.5, 4.0, None, 0.1) if teacher else CrossEntropy(0.1))


def three_steps(
    net: ResNet, compile_it: bool, precision: str = "fp32", teacher: ResNet | None = None
) -> tuple[list[float], list[Tensor]]:
    objective = objective_for(net, teacher)
    return steps_of(net, CompiledFunction(objective) if compile_it else objective, precision)


def steps_of(net: ResNet, objective: Objective, precision: str) -> tuple[list[float], list[Tensor]]:
    """Three of them: their losses; the weights after them, and each one's hits."""
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
    return losses, [p.detach().clone() for p in net.parameters()] + hits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "taught", "precision", "tolerance"),
    [(tiny_model(), True, "fp32", 1e-4), (pooling_model(blocks=(0, 0)), False, "bf16", 2e-2)],
)
def test_compiled_and_eager_training_agree(
    model: Model, taught: bool, precision: str, tolerance: float, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three steps, losses and weights; a compiled graph rounds to bf16 less often, and each time alike."""
    teacher = build_model(one_layer(12), MEAN, STD, seed=9) if taught else None
    losses, weights = three_steps(build_model(model, MEAN, STD, seed=1), False, precision, teacher)
    net = build_model(model, MEAN, STD, seed=1)
    begun = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    step = CompiledFunction(objective_for(net, teacher))
    fast_losses, fast_weights = steps_of(net, step, precision)
    assert "torch.compile failed" not in capfd.readouterr().err
    assert fast_losses == pytest.approx(losses, abs=tolerance)
    for found, expected in zip(fast_weights, weights, strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    net.load_state_dict(begun)
    again_losses, again_weights = steps_of(net, step, precision)
    assert again_losses == fast_losses
    assert all(torch.equal(one, other) for one, other in zip(again_weights, fast_weights, strict=True))


@pytest.fixture
def no_graphs() -> Iterator[None]:
    """This process has no compiled graph, and none is read from the disk, from which kernels may come."""
    torch.compiler.reset()
    with inductor.patch(fx_graph_cache=False), functorch.patch(enable_autograd_cache=False):
        yield


@pytest.mark.slow
def test_without_a_compiler_training_goes_on_and_says_so_once(
    no_graphs: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        losses, _ = three_steps(build_model(one_layer(20), MEAN, STD, seed=1), compile_it=True)
    eager, _ = three_steps(build_model(one_layer(20), MEAN, STD, seed=1), compile_it=False)
    assert losses == eager
    said = [line for line in capfd.readouterr().err.splitlines() if "torch.compile failed" in line]
    assert len(said) == 1
    assert "training continues without it" in said[0]


@pytest.mark.slow
def test_a_backward_graph_that_cannot_be_compiled_falls_back_too(
    no_graphs: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise InductorError(RuntimeError("no backward here"), None)

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_backward", refuse)
    losses, _ = three_steps(build_model(one_layer(16), MEAN, STD, seed=1), compile_it=True)
    eager, _ = three_steps(build_model(one_layer(16), MEAN, STD, seed=1), compile_it=False)
    assert losses == eager
    assert capfd.readouterr().err.count("torch.compile failed (RuntimeError: no backward here)") == 1


UNLOADABLE = "cache/kernel.so: failed to map segment from shared object"
NOEXEC = (
    "cache/kernel.so: its file system is mounted with noexec, "
    "expected: TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR name folders of another one"
)
REFUSED = (
    "C++ compile error\n\nCommand:\ng++ x.cpp\n\nOutput:\nIn file y:\nx.cpp:1:10: fatal error: Python.h: No such file"
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InductorError(OSError(f"{UNLOADABLE}.  The most common"), None), NOEXEC),
        (ImportError(UNLOADABLE), NOEXEC),
        (InductorError(RuntimeError(REFUSED), None), "x.cpp:1:10: fatal error: Python.h: No such file"),
        (BackendCompilerFailed(print, RuntimeError("No compiler"), None), "RuntimeError: No compiler"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_the_line_says_why_nothing_was_compiled(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(x: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    step = CompiledFunction(lambda x: x + 1)
    assert step.failure is None
    assert float(step(torch.zeros(()))) == 1
    assert step.failure is not None
    line = f"warning: torch.compile failed ({reason}); training continues without it\n"
    assert capsys.readouterr().err == line


class Graph(torch.autograd.Function):
    """Returns the same memory in each call, as a CUDA graph does; its gradient is 2."""

    memory = torch.zeros(())

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return Graph.memory.copy_(x)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


def test_a_gpu_replays_graphs_whose_results_are_copied_before_the_next_call_overwrites_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[object] = []

    def compiled(function: object, **options: object) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        events.append(options["mode"])
        return lambda x: (Graph.apply(x), Graph.memory)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: events.append("step"))
    step = CompiledFunction(lambda x: (x, x), replay=True)
    x = torch.tensor(1.0, requires_grad=True)
    loss, hits = step(x)
    loss.backward()
    step(torch.tensor(5.0))
    assert events == ["reduce-overhead", "step", "step"]
    assert (loss.item(), hits.item()) == (1, 1)
    assert x.grad == 2


def test_a_deterministic_training_chooses_no_kernel_by_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: lambda x: (seen.append(inductor.deterministic), x)
    )
    for deterministic in (False, True):
        with backend_settings(CPU, deterministic):
            CompiledFunction(lambda x: (x, x))(torch.zeros(()))
    with inductor.patch(deterministic=True):  # as TORCHINDUCTOR_DETERMINISTIC=1 sets it
        CompiledFunction(lambda x: (x, x))(torch.zeros(()))
    assert seen == [False, True, True]


@pytest.mark.slow
def test_a_cpu_replays_nothing_and_computes_the_same_bytes() -> None:
    net, images = nn.Linear(32, 10), torch.rand(8, 32)

    def objective(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(images)
        return logits.logsumexp(1).mean(), logits.argmax(1).sum()

    results = []
    for replay in (False, True):
        net.zero_grad()
        step = CompiledFunction(objective, replay)
        loss, hits = step(images)
        loss.backward()
        assert step.failure is None
        results.append([loss, hits, *(p.grad for p in net.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_without_replay_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    result = torch.zeros(())
    asked: list[dict[str, object]] = []

    def compiled(function: object, **options: object) -> Callable[[], Tensor]:
        asked.append(options)
        return lambda: result

    monkeypatch.setattr(torch, "compile", compiled)
    assert CompiledFunction(lambda: result)() is result
    # A graph for each shape, and one graph for the whole function.
    assert asked == [{"dynamic": False, "fullgraph": True, "mode": None}]


@pytest.mark.parametrize("when", ["before", "during the save"])
def test_a_signal_that_came_before_a_compilation_ends_the_training_after_a_save(when: str) -> None:
    saved: list[str] = []

    def save() -> None:
        if when != "before":
            os.kill(os.getpid(), signal.SIGTERM)
        saved.append("whole")

    stopped = pytest.raises(StoppedError, match=r"^stopped by SIGTERM during torch\.compile; the same command resumes$")
    with stop_requests(), signals.before_a_compilation(save), stopped as caught:
        if when == "before":
            os.kill(os.getpid(), signal.SIGTERM)
        CompiledFunction(lambda x: x)(torch.zeros(1))
    assert (caught.value.exit_code, saved, signals._compiling) == (143, ["whole"], False)


def test_each_shape_is_compiled_once_after_a_save_and_only_then_a_signal_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[object] = []

    def compiled_function(x: Tensor) -> Tensor:
        events.append("compiling" if signals._compiling else "running")
        return x

    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled_function)
    step = CompiledFunction(lambda x: x)
    with signals.before_a_compilation(lambda: events.append("saved")):
        for size in (1, 1, 2, 1, 2):
            step(torch.zeros(size))
    assert events == ["saved", "compiling", "running", "saved", "compiling", "running", "running"]


def test_a_mistake_in_the_function_itself_is_not_swallowed(capfd: pytest.CaptureFixture[str]) -> None:
    def broken(x: Tensor) -> Tensor:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        CompiledFunction(broken)(torch.zeros(1))
    assert "torch.compile failed" not in capfd.readouterr().err
