"""The training loop on a problem that takes a second."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
from helpers import MEAN, STD, augmentation_settings, optimizer_settings, schedule_settings, synthetic_split, tiny_model
from torch import Tensor, nn

from leanresnet.compute.device import autocast
from leanresnet.compute.distributed import DistributedContext
from leanresnet.config.schema import Sam
from leanresnet.errors import DivergedError
from leanresnet.models.resnet import build_model
from leanresnet.training import loop as module
from leanresnet.training.augmentation import seed_of
from leanresnet.training.loader import EvalBatches, TrainBatches
from leanresnet.training.loop import Criterion, StepConfig, fit, objective_of, train_one_epoch
from leanresnet.training.losses import CrossEntropy
from leanresnet.training.optimizers import build_optimizer
from leanresnet.training.sam import SharpnessAware
from leanresnet.training.schedules import LearningRate, build_schedule
from leanresnet.training.state import TrainState
from leanresnet.training.validation import MEASURES, Measure, Metrics, evaluate

BATCH, CPU = 20, torch.device("cpu")
Weights = dict[str, Tensor]


class Training:
    """Everything that `fit` needs, on 60 images in 3 steps an epoch; `run` calls it."""

    def __init__(
        self,
        criterion: Criterion | None = None,
        *,
        epochs: int = 3,
        optimizer: dict[str, Any] | None = None,
        schedule: dict[str, Any] | None = None,
        precision: str = "fp32",
        max_grad_norm: float | None = None,
        seed: int = 0,
        stochastic_depth: float = 0.0,
    ) -> None:
        self.epochs, self.seed = epochs, seed
        self.net = build_model(tiny_model(), MEAN, STD, seed=0, stochastic_depth=stochastic_depth)
        self.train = TrainBatches(synthetic_split(60), BATCH, augmentation_settings(flip=0.0, crop_padding=2), seed=0)
        self.validation = EvalBatches(synthetic_split(40, seed=1), BATCH)
        self.optimizer = build_optimizer(self.net, optimizer_settings(**{"lr": 0.05, **(optimizer or {})}))
        settings = schedule_settings(**{"name": "constant", "warmup_epochs": 0, **(schedule or {})})
        built = build_schedule(self.optimizer, settings, epochs, len(self.train))
        objective = objective_of(self.net, criterion or CrossEntropy(0.0))
        self.loop = StepConfig(objective, self.optimizer, built, autocast(CPU, precision), max_grad_norm)
        self.logged: list[tuple[int, Metrics]] = []
        self.snapshots: list[Weights] = []

    def log(self, metrics: Metrics, epoch: int) -> None:
        self.logged.append((epoch, metrics))
        self.snapshots.append(copy.deepcopy(self.net.state_dict()))

    def run(self, ema_decay: float | None = None, measures: dict[str, Measure] = MEASURES) -> TrainState:
        return fit(
            self.net,
            self.train,
            self.validation,
            self.loop,
            epochs=self.epochs,
            seed=self.seed,
            ema_decay=ema_decay,
            measures=measures,
            log_metrics=self.log,
        )


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def scripted_accuracy(values: list[float]) -> Measure:
    """A measure whose mean is the next of `values` after each pass over the 40 validation images in two batches."""
    calls = iter(value for value in values for _ in range(2))
    return lambda images, logits, labels: torch.full((len(labels),), next(calls))


def test_training_lowers_the_loss_and_learns() -> None:
    history = Training(epochs=12, optimizer={"lr": 0.2}).run().history
    assert history[-1]["train/loss"] < history[0]["train/loss"] / 2
    assert history[-1]["train/accuracy"] > 0.8
    assert history[-1]["val/accuracy"] > 0.5


def test_the_best_epoch_is_the_first_of_the_highest_validation_accuracy() -> None:
    training = Training(epochs=5)
    accuracy = scripted_accuracy([0.25, 0.5, 0.75, 0.75, 0.5])
    fitted = training.run(measures={**MEASURES, "accuracy": accuracy})
    assert fitted.best_epoch == 3
    assert same(fitted.best_weights, training.snapshots[2])
    assert not same(fitted.best_weights, training.snapshots[3])
    assert [metrics["val/best_accuracy"] for _, metrics in training.logged] == [0.25, 0.5, 0.75, 0.75, 0.75]


def test_an_accuracy_of_0_still_has_a_best_epoch() -> None:
    training = Training(epochs=2)
    fitted = training.run(measures={**MEASURES, "accuracy": scripted_accuracy([0.0, 0.0])})
    assert fitted.best_epoch == 1
    assert same(fitted.best_weights, training.snapshots[0])


@pytest.mark.parametrize("ema_decay", [None, 0.6])
def test_the_best_weights_reproduce_their_accuracy(ema_decay: float | None) -> None:
    training = Training(epochs=5)
    fitted = training.run(ema_decay)
    net = build_model(tiny_model(), MEAN, STD, seed=9)
    net.load_state_dict(fitted.best_weights)
    measured = evaluate(net, training.validation)
    best = fitted.history[fitted.best_epoch - 1]
    assert measured["accuracy"] == best["val/accuracy"] == max(row["val/accuracy"] for row in fitted.history)
    assert measured["loss"] == pytest.approx(best["val/loss"], rel=1e-6)


class CountingSchedule(LearningRate):
    """Calls `after` after each step."""

    def __init__(self, schedule: LearningRate, after: Callable[[], None]) -> None:
        super().__init__(schedule._optimizer, schedule._rates, schedule._plateau)
        self.after = after
        self.epoch_losses: list[float] = []

    def step(self) -> None:
        super().step()
        self.after()

    def end_epoch(self, val_loss: float) -> None:
        super().end_epoch(val_loss)
        self.epoch_losses.append(val_loss)


def test_averaged_weights_follow_their_definition() -> None:
    """a_1 = w_1, a_k = d a_(k-1) + (1 - d) w_k, after each of six steps."""
    training, decay = Training(epochs=2), 0.7
    steps: list[Weights] = []
    after = lambda: steps.append(copy.deepcopy(training.net.state_dict()))  # noqa: E731
    training.loop = StepConfig(**vars(training.loop) | {"schedule": CountingSchedule(training.loop.schedule, after)})
    fitted = training.run(decay, {**MEASURES, "accuracy": scripted_accuracy([0.1, 0.2])})
    assert len(steps) == 6
    for name, _ in training.net.named_parameters():
        found = fitted.best_weights[name]
        expected = steps[0][name].double()
        for weights in steps[1:]:
            expected = decay * expected + (1 - decay) * weights[name].double()
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5, msg=name)
    assert not torch.allclose(fitted.best_weights["stem.0.weight"], steps[-1]["stem.0.weight"], atol=1e-4)


def test_averaged_weights_have_the_batch_statistics_of_their_own_activations() -> None:
    training = Training(epochs=2)
    fitted = training.run(0.9, {**MEASURES, "accuracy": scripted_accuracy([0.1, 0.2])})
    net = build_model(tiny_model(), MEAN, STD, seed=9)
    net.load_state_dict(fitted.best_weights)
    images = torch.cat([images for images, _ in training.train.epoch(2)])
    # The first batch norm sees one convolution of the images: its mean over three batches is that over all of them.
    seen = net.stem[0](net.normalize(images)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(net.stem[1].running_mean, seen.mean(1), atol=1e-6, rtol=1e-4)
    batches = seen.view(len(seen), 3, -1)
    torch.testing.assert_close(net.stem[1].running_var, batches.var(2).mean(1), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(net.stem[1].running_mean, training.net.stem[1].running_mean, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_clip_norm_bounds_the_gradient(optimizer: str) -> None:
    def norms(max_grad_norm: float | None) -> list[float]:
        training, found = Training(optimizer={"name": optimizer}, max_grad_norm=max_grad_norm), []

        def after() -> None:
            gradients = [p.grad for p in training.net.parameters() if p.grad is not None]
            found.append(float(nn.utils.get_total_norm(gradients)))

        loop = StepConfig(**vars(training.loop) | {"schedule": CountingSchedule(training.loop.schedule, after)})
        train_one_epoch(training.net, training.train.epoch(1), loop)
        return found

    assert min(norms(None)) > 0.5
    assert norms(0.1) == pytest.approx([0.1] * 3, rel=1e-3)
    assert norms(1e6)[0] == norms(None)[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_the_epoch_and_the_learning_rate(value: float) -> None:
    calls = []

    def criterion(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(labels))
        logits = net(images)
        return (1 + logits.square().sum()) * (value if len(calls) == 6 else 0.0), logits

    training = Training(criterion, epochs=4, schedule={"name": "step", "step_epochs": 1, "factor": 0.1})
    with pytest.raises(
        DivergedError, match=rf"^epoch 2, step 3: the training loss is {value} at learning rate 0\.005$"
    ):
        training.run()
    assert [epoch for epoch, _ in training.logged] == [1]


class LastStep:
    """A loss that is finite in each of six steps; `harm` is done in the last one, to the network or its gradient."""

    def __init__(self, harm: Callable[[nn.Module, Tensor], Tensor]) -> None:
        self._harm = harm
        self._steps = 0

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = CrossEntropy(0.0)(net, images, labels)
        self._steps += 1
        return loss + (self._harm(net, logits) if self._steps == 6 else 0.0), logits


def root_of_nothing(net: nn.Module, logits: Tensor) -> Tensor:
    """0, with a gradient of NaN."""
    return (logits.sum() * 0).sqrt()


def vast_statistics(net: nn.Module, logits: Tensor) -> Tensor:
    """A running variance of infinity, by which everything becomes 0 and no metric NaN."""
    net.get_buffer("stem.1.running_var").data.fill_(math.inf)
    return torch.zeros(())


@pytest.mark.parametrize(
    ("harm", "ema_decay", "said"),
    [
        (root_of_nothing, None, "val/loss is nan"),
        (root_of_nothing, 0.9, "val/loss is nan"),
        (vast_statistics, None, r"stem\.1\.running_var is not finite"),
    ],
)
def test_what_diverges_in_the_last_step_of_all_stops_too(
    harm: Callable[[nn.Module, Tensor], Tensor], ema_decay: float | None, said: str
) -> None:
    training = Training(LastStep(harm), epochs=2)
    with pytest.raises(DivergedError, match=rf"^epoch 2: {said} at learning rate 0\.05$"):
        training.run(ema_decay)
    assert [epoch for epoch, _ in training.logged] == [1]


def test_any_metric_that_is_no_number_stops() -> None:
    measures = {**MEASURES, "teacher_gap": lambda images, logits, labels: labels / torch.zeros(len(labels))}
    with pytest.raises(DivergedError, match=r"^epoch 1: val/teacher_gap is (nan|inf) at learning rate 0\.05$"):
        Training(epochs=1).run(measures=measures)


def test_the_same_seed_gives_the_same_bits_twice() -> None:
    first, second = Training(), Training()
    one = first.run(ema_decay=0.9)
    torch.manual_seed(77)
    two = second.run(ema_decay=0.9)
    assert same(one.best_weights, two.best_weights)
    assert same(first.net.state_dict(), second.net.state_dict())
    assert one.history == two.history


def test_each_epoch_is_logged_once() -> None:
    training = Training(schedule={"name": "step", "step_epochs": 1, "factor": 0.1})
    fitted = training.run(measures={**MEASURES, "constant": lambda images, logits, labels: 0 * labels + 7})
    assert [epoch for epoch, _ in training.logged] == [1, 2, 3]
    rows = {"lr", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/constant"}
    assert all(set(row) == rows for row in fitted.history)
    for (_, metrics), row in zip(training.logged, fitted.history, strict=True):
        assert set(metrics) == rows | {"val/best_accuracy", "images_per_second", "train_seconds"}
        assert metrics.items() >= row.items()
        assert metrics["val/constant"] == 7
    assert [row["lr"] for row in fitted.history] == pytest.approx([0.05, 0.005, 0.0005])
    seconds = [metrics["train_seconds"] for _, metrics in training.logged]
    assert 0 < seconds[0] < seconds[1] < seconds[2]


def test_the_schedule_steps_once_a_batch_and_hears_the_validation_loss_once_an_epoch() -> None:
    training, steps = Training(epochs=4), []
    schedule = CountingSchedule(training.loop.schedule, lambda: steps.append(1))
    training.loop = StepConfig(**vars(training.loop) | {"schedule": schedule})
    fitted = training.run()
    assert len(steps) == 4 * 3
    assert schedule.epoch_losses == [row["val/loss"] for row in fitted.history]


def test_training_metrics_are_means_over_the_epoch() -> None:
    training, losses, hits = Training(), [], []

    def criterion(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = CrossEntropy(0.1)(net, images, labels)
        losses.append(loss.item())
        hits.append((logits.argmax(1) == labels).sum().item())
        return loss, logits

    loop = StepConfig(**vars(training.loop) | {"objective": objective_of(training.net, criterion)})
    metrics = train_one_epoch(training.net, training.train.epoch(1), loop)
    assert metrics["loss"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert metrics["accuracy"] == pytest.approx(sum(hits) / 60)
    assert training.net.training


def test_epochs_differ_in_what_they_show() -> None:
    training, shown = Training(epochs=3), []

    def criterion(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        shown.append(images)
        return CrossEntropy(0.0)(net, images, labels)

    training.loop = StepConfig(**vars(training.loop) | {"objective": objective_of(training.net, criterion)})
    training.run()
    expected = [images for number in (1, 2, 3) for images, _ in training.train.epoch(number)]
    assert all(torch.equal(a, b) for a, b in zip(shown, expected, strict=True))


def test_nothing_is_printed_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    Training(epochs=2).run()
    assert capfd.readouterr() == ("", "")


def test_training_is_in_training_mode_after_an_evaluation() -> None:
    training = Training()
    training.net.eval()
    before = training.net.stem[1].running_mean.clone()
    train_one_epoch(training.net, training.train.epoch(1), training.loop)
    assert all(module.training for module in training.net.modules())
    assert not torch.equal(training.net.stem[1].running_mean, before)


def test_each_forward_pass_is_in_the_precision_of_the_recipe() -> None:
    """Of training, of both passes of SAM, of the averaged network's statistics, and of validation."""
    training, found = Training(precision="bf16", epochs=1), []
    sam = SharpnessAware(training.net, Sam(rho=0.05, adaptive=False))
    training.loop = StepConfig(**vars(training.loop) | {"sam": sam})
    training.net.stem[0].register_forward_hook(lambda layer, given, output: found.append(output.dtype))
    training.run(ema_decay=0.5)
    # 3 steps of two passes, the statistics of 3 batches, and 2 batches of validation.
    assert found == [torch.bfloat16] * (6 + 3 + 2)


def test_the_gradient_of_sam_is_clipped() -> None:
    training, found = Training(max_grad_norm=0.1), []

    def after() -> None:
        found.append(float(nn.utils.get_total_norm([p.grad for p in training.net.parameters() if p.grad is not None])))

    changes = {
        "sam": SharpnessAware(training.net, Sam(rho=0.05, adaptive=False)),
        "schedule": CountingSchedule(training.loop.schedule, after),
    }
    train_one_epoch(training.net, training.train.epoch(1), StepConfig(**vars(training.loop) | changes))
    assert found == pytest.approx([0.1] * 3, rel=1e-3)


def test_the_statistics_of_averaged_weights_come_from_as_many_images_as_they_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole batches of the epoch, so that there are at least `NORM_IMAGES` of them."""
    monkeypatch.setattr(module, "NORM_IMAGES", BATCH + 1)
    counts: list[int] = []
    compute = module.compute_batch_norm

    def counted(net: nn.Module, images: Iterable[tuple[Tensor, Tensor]]) -> None:
        batches = list(images)
        counts.append(len(batches))
        compute(net, batches)

    monkeypatch.setattr(module, "compute_batch_norm", counted)
    Training(epochs=2).run(ema_decay=0.5)
    assert counts == [2, 2]


def test_all_processes_validate_with_the_buffers_of_the_first() -> None:
    class NotTheFirst(DistributedContext):
        def broadcast(self, tensor: Tensor) -> Tensor:
            return tensor.fill_(2)

    training = Training(epochs=1)
    training.loop = StepConfig(**vars(training.loop) | {"world": NotTheFirst()})
    validated = training.run().history[0]["val/loss"]
    assert all(buffer.eq(2).all() for buffer in training.net.buffers())
    assert validated == evaluate(training.net, training.validation)["loss"]


def test_the_selection_hears_the_validation_loss() -> None:
    class Everything:
        """A selection that leaves nothing out."""

        heard: ClassVar[list[float]] = []

        def select(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            return images, labels

        def step(self) -> None:
            pass

        def metrics(self) -> Metrics:
            return {}

        def end_epoch(self, val_loss: float) -> None:
            self.heard.append(val_loss)

        def state_dict(self) -> dict[str, Any]:
            return {}

    training = Training(epochs=2)
    training.loop = StepConfig(**vars(training.loop) | {"selection": Everything()})
    assert Everything.heard == [] != [row["val/loss"] for row in training.run().history] == Everything.heard


def test_the_network_draws_anew_in_each_epoch_and_nothing_that_the_images_undergo() -> None:
    drawn: list[float] = []

    def criterion(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append(float(torch.rand(())))
        return CrossEntropy(0.0)(net, images, labels)

    Training(criterion, epochs=2).run()
    assert len(set(drawn)) == 6
    of_images = torch.Generator().manual_seed(seed_of(0, 1))
    assert drawn[0] != float(torch.rand((), generator=of_images))


def test_what_the_network_draws_depends_on_the_seed_alone() -> None:
    def losses(seed: int, state: int) -> list[float]:
        torch.manual_seed(state)
        before = torch.get_rng_state()
        history = Training(stochastic_depth=0.8, seed=seed).run().history
        assert torch.equal(torch.get_rng_state(), before)
        return [row["train/loss"] for row in history]

    first = losses(seed=0, state=1)
    assert losses(seed=0, state=2) == first
    assert losses(seed=1, state=1) != first


def test_bf16_stays_close_to_fp32_over_twenty_steps() -> None:
    """Each of 20 losses within 0.03 while the loss falls by more than 0.5."""

    def losses(precision: str) -> list[float]:
        found: list[float] = []

        def criterion(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            loss, logits = CrossEntropy(0.0)(net, images, labels)
            found.append(loss.item())
            return loss, logits

        Training(criterion, epochs=7, precision=precision, optimizer={"lr": 0.1}).run()
        return found[:20]

    exact, rounded = losses("fp32"), losses("bf16")
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=0.03)
    assert exact[-1] < exact[0] - 0.5
