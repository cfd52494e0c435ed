"""The benchmarks compare what they say they compare; nothing here is timed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from conftest import outside_environment
from helpers import tiny_recipe
from imports import ROOT

from bench import operations, packing, report
from bench.speed import default
from bench.trainers import Engine, PlainLoop, PlainProcess
from leanresnet.models.complexity import count_parameters

CPU = torch.device("cpu")


def test_the_network_of_the_comparison_is_the_papers() -> None:
    assert count_parameters(default(64).model) == 4_935_242
    assert default(64).batch_size == 64


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
def test_the_plain_loop_trains_the_same_network_on_its_own_pictures() -> None:
    recipe = tiny_recipe(batch_size=10)
    plain = PlainLoop(recipe, steps=2, device=CPU)
    assert sum(p.numel() for p in plain.net.parameters()) == count_parameters(recipe.model)
    assert plain.net.stem[0].weight.is_contiguous()
    before = plain.net.stem[0].weight.clone()
    images, labels = next(iter(plain.loader))
    assert (images.shape, images.dtype, labels.dtype) == ((10, 3, 32, 32), torch.float32, torch.int64)
    # Normalised by the transforms, and left as they are by the network.
    assert float(images.max()) < 2.8
    torch.testing.assert_close(plain.net.normalize(images), images, atol=1e-5, rtol=1e-5)
    taken = []
    step = plain._step
    plain._step = lambda images, labels: taken.append(len(labels)) or step(images, labels)  # type: ignore[method-assign]
    run = plain.epoch()
    assert taken == [10]
    run()
    assert taken == [10, 10, 10]
    assert not torch.equal(plain.net.stem[0].weight, before)


@pytest.mark.parametrize("action", ["run", "bare"])
def test_the_engine_and_the_bare_step_take_as_many_steps(action: str) -> None:
    trainer = Engine(tiny_recipe(batch_size=10), steps=3, device=CPU, mode="eager")
    steps: list[int] = []
    hook = trainer.loop.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    getattr(trainer, action)()
    hook.remove()
    assert len(steps) == 3
    assert trainer.images == 30


def test_the_plain_loop_runs_beside_in_a_process_of_its_own() -> None:
    with PlainProcess(tiny_recipe(batch_size=10), steps=2, device=CPU) as plain:
        assert plain.images_a_second() > 0
        assert plain.images_a_second() > 0
        assert plain._process.pid != os.getpid()
    assert plain._process.exitcode == 0


def test_the_peak_of_memory_is_not_that_of_the_process_that_started_it() -> None:
    larger = 2**30
    held = bytearray(larger)
    del held
    script = "import torch; from bench.overheads import peak_bytes; print(peak_bytes(torch.device('cpu'))['host'])"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=outside_environment(), capture_output=True, text=True, check=True)
    assert 2**26 < int(done.stdout) < larger


def test_operations_are_counted_without_views() -> None:
    counting = operations.Counting()
    with counting:
        x = torch.empty(2, 3).fill_(1.0)
        torch._foreach_add_([x.view(6), x.T], 1.0)
        float(x.sum())
    assert counting.calls == {"aten::fill_": 1, "aten::_foreach_add_": 1, "aten::sum": 1, operations.READ: 1}


def test_measures_take_turns() -> None:
    order: list[str] = []

    def measure(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or float(len(order))  # type: ignore[func-returns-value]

    found = report.alternate({"a": measure("a"), "b": measure("b")}, 3)
    assert order == ["a", "b"] * 3
    assert found == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_each_figure_ends_as_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "FIGURES", [])
    report.record("a/b", 1.23456, "x", batch=3)
    capsys.readouterr()
    report.print_all(CPU)
    (line,) = capsys.readouterr().out.splitlines()
    figure = json.loads(line)
    assert (figure["name"], figure["value"], figure["unit"], figure["batch"]) == ("a/b", 1.235, "x", 3)
    assert figure["torch"] == torch.__version__


def test_packing_compares_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "FIGURES", [])
    monkeypatch.setattr(packing, "CHANNELS", (16,))
    x, weight = torch.randn(30, 16, 3, 3, requires_grad=True), torch.randn(16, 16, 3, 3, requires_grad=True)
    plain, packed = (torch.autograd.grad(kind(x, weight).square().sum(), weight)[0] for kind in packing.KINDS.values())
    torch.testing.assert_close(packed, plain, rtol=1e-3, atol=1e-2)
    packing.packing(4)
    assert [figure["name"] for figure in report.FIGURES] == [f"packing/16_channels_{n}_pixels" for n in packing.SIZES]
