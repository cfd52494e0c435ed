"""The one training loop. It knows no recipe: the loss, the optimizer, the schedule, the data and
what is measured on validation are handed in; only `log_metrics(metrics, step)` leads out."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext
from leanresnet.errors import DivergedError
from leanresnet.training.loader import EvalBatches, TrainBatches
from leanresnet.training.sam import SharpnessAware
from leanresnet.training.schedules import LearningRate
from leanresnet.training.state import EpochMeter, TrainState
from leanresnet.training.validation import Measure, Metrics, evaluate

# (network, images, labels) -> the loss, and the network's logits.
Criterion = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
# (images, labels) -> the loss, and how many of them the network got right; what a step differentiates.
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Training images from which the averaged weights take batch norm's statistics, each epoch.
NORM_IMAGES = 10_000


@dataclass(frozen=True)
class StepConfig:
    """What a step needs beside the network and the data.

    Args:
        objective: see `objective_of`; compiled or not.
        autocast: entered around each forward pass; it may be entered many times.
        clip_norm: the gradient's greatest L2 norm, or None.
        sharpness: where a second pass takes the gradient, or None: a step has one pass.
        world: the processes that share each batch.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: LearningRate
    autocast: AbstractContextManager[object]
    clip_norm: float | None
    sharpness: SharpnessAware | None = None
    world: DistributedContext = SINGLE_PROCESS


def objective_of(net: nn.Module, criterion: Criterion) -> Objective:
    """The network and its loss as one function, which `torch.compile` takes as one graph.

    Labels are (B,) classes or (B, classes) shares; of shares, the largest is the right answer.
    """

    def objective(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = criterion(net, images, labels)
        right = labels if labels.ndim == 1 else labels.argmax(1)
        return loss, (logits.detach().argmax(1) == right).sum()

    return objective


def fit(
    net: nn.Module,
    train: TrainBatches,
    validation: EvalBatches,
    loop: StepConfig,
    *,
    epochs: int,
    seed: int,
    ema_decay: float | None,
    measures: dict[str, Measure],
    log_metrics: Callable[[Metrics, int], None],
    start: Mapping[str, Any] | None = None,
    on_step_end: Callable[[TrainState], None] = lambda train_state: None,
) -> TrainState:
    """Train for `epochs` epochs, counted from 1; validate the averaged weights where `ema_decay` is given.

    The averaged weights belong to no step, so neither do the statistics that a batch norm kept on
    the way: they are taken anew, from the epoch's first batches. That is part of the time that training takes, of
    which `images_per_second` and `train_seconds` tell; validation is not.

    The caller's random state is left as it was.

    Args:
        start: a state of `TrainState`, from which a training goes on as if it had never stopped.
        offer: is shown the progress after each step, each epoch and each batch of validation; it may keep
            the state, or end the training by an exception.

    Raises:
        DivergedError: a loss, a metric or a weight is NaN or infinite.
    """
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)) if ema_decay else None
    eval_model = average.module if average else net
    gpus = {parameter.device for parameter in net.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(gpus):
        train_state = TrainState(net, loop.optimizer, loop.schedule, average, seed)
        if start is not None:
            train_state.load_state_dict(start)
        first = train_state.epoch
        bar = tqdm(range(first, epochs + 1), "epochs", epochs, initial=first - 1, unit="epoch", disable=_quiet(loop))
        with bar:
            for epoch in bar:
                meter, rate = train_state.meter, train_state.rate
                try:
                    after_step = partial(on_step_end, train_state)
                    trained = train_one_epoch(
                        net, _steps(train, train_state, epochs, _quiet(loop)), loop, average, meter, after_step
                    )
                except DivergedError as error:
                    raise DivergedError(f"epoch {epoch}, {error}") from None
                with loop.autocast:
                    begun = time.perf_counter()
                    if average is not None:
                        train_state.seed_draws()
                        images = islice(train.epoch(epoch), math.ceil(NORM_IMAGES / train.batch_size))
                        update_bn(_offering(images, after_step), eval_model)
                        train_state.wait()
                    norm_seconds = time.perf_counter() - begun
                    loop.world.broadcast_buffers(eval_model)
                    validated = evaluate(eval_model, _offering(validation, after_step), measures, loop.world)
                # Not before: a training that goes on from a state of the validation takes the statistics once more.
                meter.seconds += norm_seconds
                loop.schedule.end_epoch(validated["loss"])
                row = {"lr": rate}
                row |= {f"train/{name}": value for name, value in trained.items()}
                row |= {f"val/{name}": value for name, value in validated.items()}
                train_state.end_epoch(row, eval_model)
                speed = meter.images / meter.seconds
                best = train_state.history[train_state.best_epoch - 1]["val/accuracy"]
                timing = {"images_per_second": speed, "train_seconds": train_state.seconds}
                log_metrics({**row, "val/best_accuracy": best, **timing}, epoch)
                accuracy = f"train {trained['accuracy']:.2%}, val {validated['accuracy']:.2%}"
                bar.set_postfix_str(f"loss {trained['loss']:.3f}, {accuracy}, {speed:.0f} images/s")
                on_step_end(train_state)
    return train_state


def train_one_epoch(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loop: StepConfig,
    average: AveragedModel | None = None,
    meter: EpochMeter | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> Metrics:
    """One pass over `batches`; the device is waited for once, at the end.

    Args:
        tally: of the epoch's earlier steps, where it goes on.

    Returns:
        loss and accuracy, means over the augmented images as they were seen.

    Raises:
        DivergedError: a loss is NaN or infinite.
    """
    net.train()
    meter = meter or EpochMeter()
    begun = time.perf_counter() - meter.seconds
    for whole_images, whole_labels in batches:
        images, labels = loop.world.shard(whole_images), loop.world.shard(whole_labels)
        loop.optimizer.zero_grad(set_to_none=True)
        with loop.autocast:
            loss, right = loop.objective(images, labels)
        loss.backward()
        if loop.sharpness is not None:
            with loop.sharpness.perturbed_weights():
                loop.optimizer.zero_grad(set_to_none=True)
                with loop.autocast:
                    perturbed_weights, _ = loop.objective(images, labels)
                perturbed_weights.backward()
        if loop.clip_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), loop.clip_norm)
        loss, right = loop.world.reduce_step(loss, right)
        meter.watch.see(loss, len(meter.losses) + 1, loop.schedule.value)
        loop.optimizer.step()
        loop.schedule.step()
        if average is not None:
            average.update_parameters(net)
        meter.add(loss, right, len(whole_labels))
        meter.seconds = time.perf_counter() - begun
        after_step()
    meter.watch.settle()
    metrics = meter.metrics()
    meter.seconds = time.perf_counter() - begun
    return metrics


def _quiet(loop: StepConfig) -> bool | None:
    """tqdm's `disable`: None leaves it to the terminal."""
    return None if loop.world.is_main_process else True


def _steps(
    train: TrainBatches, train_state: TrainState, epochs: int, quiet: bool | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The rest of the epoch's batches behind a bar, where there is a terminal."""
    label, done = f"epoch {train_state.epoch}/{epochs}", train_state.step
    rest = train.epoch(train_state.epoch, done)
    yield from tqdm(rest, label, len(train), leave=False, initial=done, position=1, unit="step", disable=quiet)


def _offering(
    batches: Iterable[tuple[Tensor, Tensor]], on_step_end: Callable[[], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        yield batch
        on_step_end()
