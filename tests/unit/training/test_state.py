"""A training that stops anywhere and goes on from its saved state is the one that never stopped, bit for bit."""

import io
import math
from collections.abc import Iterable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import (
    MEAN,
    STD,
    augmentation_settings,
    optimizer_settings,
    schedule_settings,
    synthetic_split,
    tiny_model,
    tiny_net,
)
from torch import Tensor, nn

from leanresnet.compute.device import autocast
from leanresnet.config.schema import Sam, Selection
from leanresnet.errors import DivergedError
from leanresnet.models.resnet import build_model
from leanresnet.training.loader import EvalBatches, TrainBatches
from leanresnet.training.loop import StepConfig, fit, objective_of
from leanresnet.training.losses import CrossEntropy
from leanresnet.training.optimizers import build_optimizer
from leanresnet.training.sam import SharpnessAware
from leanresnet.training.schedules import LearningRate, build_schedule
from leanresnet.training.selection import ProxySelection, proxy_objective
from leanresnet.training.state import LossWatch, TrainState
from leanresnet.training.validation import MEASURES, Metrics

EPOCHS, STEPS, BATCH = 3, 3, 20
# Each of three epochs offers its state after 3 steps, after 2 batches of validation, and at its end.
OFFERS = EPOCHS * (STEPS + 2 + 1)


class StopError(Exception):
    pass


class Trial:
    """A training of 3 epochs of 3 steps with all that has a state of its own."""

    def __init__(
        self,
        optimizer: dict[str, Any],
        schedule: dict[str, Any],
        ema_decay: float | None = None,
        epochs: int = EPOCHS,
    ) -> None:
        def trainer(net: nn.Module) -> tuple[torch.optim.Optimizer, LearningRate]:
            built = build_optimizer(net, optimizer_settings(lr=0.05, **optimizer))
            return built, build_schedule(built, schedule_settings(**{"warmup_epochs": 0, **schedule}), epochs, STEPS)

        self.epochs = epochs
        net = build_model(tiny_model(), MEAN, STD, seed=0, stochastic_depth=0.5)
        mixing = augmentation_settings(flip=0.5, crop_padding=2, mix="cutmix", mix_share=0.5)
        self.train = TrainBatches(synthetic_split(60), BATCH, mixing, seed=0)
        self.validation = EvalBatches(synthetic_split(40, seed=1), BATCH)
        sharpness = SharpnessAware(net, Sam(rho=0.1, adaptive=True)) if ema_decay else None
        context = autocast(torch.device("cpu"), "fp32")
        proxy = None
        if schedule["name"] in ("plateau", "linear"):
            small = tiny_net(channels=(8, 8))
            settings = Selection(keep=0.5, width=0.5, blocks=1)
            proxy = ProxySelection(settings, small, proxy_objective(small, 0.1), *trainer(small), context, 1.0)
        self.loop = StepConfig(objective_of(net, CrossEntropy(0.1)), *trainer(net), context, 1.0, sharpness, proxy)
        self.net, self.ema_decay = net, ema_decay
        self.logged: list[tuple[int, Metrics]] = []

    def run(self, start: dict[str, Any] | None = None, stop_at: int | None = None) -> dict[str, Any]:
        """The last state; or, with `stop_at`, that of the so many-th offer, at which the training dies."""
        offers, kept = 0, {}

        def on_step_end(train_state: TrainState) -> None:
            nonlocal offers, kept
            offers += 1
            if offers == stop_at:
                kept = through_a_file(train_state.state_dict())
                raise StopError

        arguments = {"epochs": self.epochs, "seed": 7, "ema_decay": self.ema_decay, "measures": dict(MEASURES)}
        log = lambda metrics, epoch: self.logged.append((epoch, metrics))  # noqa: E731
        try:
            done = fit(
                self.net,
                self.train,
                self.validation,
                self.loop,
                **arguments,
                log_metrics=log,
                start=start,
                on_step_end=on_step_end,
            )
        except StopError:
            return kept
        return through_a_file(done.state_dict())


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def without_times(state: Any) -> Any:
    """Every tensor as its bytes; no seconds, and no random state, which is the caller's again after `fit`."""
    if isinstance(state, Tensor):
        return (state.dtype, tuple(state.shape), state.contiguous().numpy().tobytes())
    if isinstance(state, dict):
        return {key: without_times(value) for key, value in state.items() if key not in ("seconds", "draws")}
    if isinstance(state, (list, tuple)):
        return [without_times(value) for value in state]
    return state


CASES = [
    ({"name": "sgd"}, {"name": "onecycle", "warmup_epochs": 1, "final_ratio": 0.01}, None),
    ({"name": "adagrad"}, {"name": "step", "step_epochs": 1, "factor": 0.5}, None),
    ({"name": "adadelta"}, {"name": "cosine_restarts", "restart_epochs": 1, "restart_mult": 1}, None),
    ({"name": "adam"}, {"name": "multistep", "milestones": [1, 2], "factor": 0.5}, None),
    ({"name": "radam"}, {"name": "plateau", "patience": 0, "factor": 0.5, "warmup_epochs": 0.5}, None),
    ({"name": "adamw"}, {"name": "linear", "warmup_epochs": 0.5}, None),
    pytest.param({"name": "muon"}, {"name": "linear"}, 0.8, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("optimizer", "schedule", "ema_decay"), CASES, ids=lambda case: str(case))
def test_a_training_stopped_anywhere_goes_on_bit_for_bit(
    optimizer: dict[str, Any], schedule: dict[str, Any], ema_decay: float | None
) -> None:
    def trial() -> Trial:
        return Trial(optimizer, schedule, ema_decay)

    whole = trial()
    expected = without_times(whole.run())
    # Averaged weights take their statistics from three more batches an epoch; then, wherever the second epoch can stop,
    # and at both ends.
    an_epoch = OFFERS // EPOCHS + 3
    chosen = [1, *range(an_epoch, 2 * an_epoch + 1), EPOCHS * an_epoch - 1, EPOCHS * an_epoch]
    places = chosen if ema_decay else range(2, OFFERS + 1, 5)
    for stop_at in places:
        first, second = trial(), trial()
        state = first.run(stop_at=stop_at)
        # What the new process drew before must not matter.
        torch.manual_seed(stop_at)
        assert without_times(second.run(start=state)) == expected, f"stopped at {stop_at}"
        epochs = [epoch for epoch, _ in first.logged + second.logged]
        # An epoch whose last state was not kept is logged once more; none is missing.
        assert sorted(set(epochs)) == [1, 2, 3]
        history = [dict(row) for row in state["history"]] + [m for e, m in second.logged if e > len(state["history"])]
        for mine, (_, theirs) in zip(history, whole.logged, strict=True):
            assert all(theirs[key] == value for key, value in mine.items() if "second" not in key)


@pytest.mark.parametrize(("name", "stretched"), [("cosine", True), ("plateau", False)])
def test_a_training_goes_on_from_the_end_of_one_with_fewer_epochs(name: str, stretched: bool) -> None:
    """With the learning rates of the longer one, and bit for bit where those before were the same."""
    schedule = {"name": name, "warmup_epochs": 0.5, "patience": 0, "final_ratio": 0.01}
    shorter, longer, whole = (Trial({"name": "sgd"}, schedule, epochs=epochs) for epochs in (2, 3, 3))
    extended, expected = longer.run(start=shorter.run()), whole.run()
    found, rates = ([row["lr"] for row in state["history"]] for state in (extended, expected))
    assert (found[2], extended["rate"]) == (rates[2], expected["rate"])
    assert (found[:2] == rates[:2]) == (not stretched)
    if not stretched:
        assert without_times(extended) == without_times(expected)


def test_a_training_does_not_seed_the_gpus_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds all GPUs"))
    Trial({"name": "sgd"}, {"name": "constant"}, epochs=1).run()


def test_a_state_says_where_it_is() -> None:
    places = []
    for stop_at in range(1, OFFERS + 1):
        state = Trial({"name": "sgd"}, {"name": "constant"}).run(stop_at=stop_at)
        places.append((state["epoch"], len(state["meter"]["losses"])))
    assert places[:7] == [(1, 1), (1, 2), (1, 3), (1, 3), (1, 3), (2, 0), (2, 1)]
    assert places[-1] == (4, 0)


def test_the_time_of_a_training_is_that_of_all_its_parts() -> None:
    first, second = (Trial({"name": "sgd"}, {"name": "constant"}) for _ in range(2))
    state = first.run(stop_at=8)
    state["seconds"], state["meter"]["seconds"] = 1000.0, 100.0
    second.run(start=state)
    metrics = dict(second.logged)
    assert 1100 < metrics[2]["train_seconds"] < 1110
    assert metrics[2]["images_per_second"] == pytest.approx(60 / (metrics[2]["train_seconds"] - 1000))
    assert metrics[3]["images_per_second"] > 60 / 10


@pytest.mark.parametrize("stop_at", [None, 5, 8, 9])
def test_averaged_weights_take_their_statistics_in_the_time_of_training(
    stop_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that stands still elsewhere; an epoch offers after 3 steps, 2 of validation, and at its end."""
    now = 0.0

    def compute(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        nonlocal now
        for _ in batches:
            now += 10

    monkeypatch.setattr("leanresnet.training.loop.time.perf_counter", lambda: now)
    monkeypatch.setattr("leanresnet.training.loop.compute_batch_norm", compute)
    first, second = (Trial({"name": "sgd"}, {"name": "constant"}, 0.8) for _ in range(2))
    second.run(start=first.run(stop_at=stop_at) if stop_at else None)
    assert dict(second.logged)[3]["train_seconds"] == 90
    assert {metrics["images_per_second"] for _, metrics in second.logged} == {2}


class SecondGPU:
    """Stands for cuda:1 beside a current cuda:0: a copy is done once an event of its stream is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.device = torch.device("cuda:1")
        self.copies: dict[torch.device, list[tuple[PinnedNumber, float]]] = {self.device: []}
        monkeypatch.setattr(torch, "empty", lambda *size, **options: PinnedNumber(self))
        monkeypatch.setattr(torch.cuda, "Event", lambda: StreamEvent(self))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)

    def loss(self, value: float) -> Any:
        return SimpleNamespace(is_cuda=True, dtype=torch.float32, device=self.device, value=value)


class PinnedNumber:
    def __init__(self, gpu: SecondGPU) -> None:
        self.gpu, self.value = gpu, -math.inf

    def copy_(self, loss: Any, non_blocking: bool) -> None:
        self.gpu.copies[loss.device].append((self, loss.value))

    def __float__(self) -> float:
        return self.value


class StreamEvent:
    def __init__(self, gpu: SecondGPU) -> None:
        self.gpu = gpu

    def record(self, stream: torch.device | None = None) -> None:
        self.stream = stream or torch.device("cuda:0")

    def synchronize(self) -> None:
        for number, value in self.gpu.copies.pop(self.stream, []):
            number.value = value


@pytest.mark.parametrize("value", [1.5, math.nan])
def test_a_loss_on_another_gpu_than_the_current_one_is_waited_for(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = LossWatch()
    watch.see(SecondGPU(monkeypatch).loss(value), 7, 0.1)
    with (
        nullcontext()
        if math.isfinite(value)
        else pytest.raises(DivergedError, match=r"^step 7: the training loss is nan")
    ):
        watch.settle()


def test_a_state_whose_last_loss_is_no_number_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    trial, gpu = Trial({"name": "sgd"}, {"name": "constant"}), SecondGPU(monkeypatch)
    state = TrainState(trial.net, trial.loop.optimizer, trial.loop.schedule, {}, 0)
    state.meter.watch.see(gpu.loss(math.nan), 7, 0.1)
    with pytest.raises(DivergedError, match=r"^step 7: the training loss is nan"):
        state.state_dict()
