"""The training loop, the only one of the project.

It does not know the recipe: the loss, the optimizer, the schedule, the data and the measures on validation are
arguments. It reports through two callbacks, `log_metrics` and `on_step_end`.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice, starmap
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext
from leanresnet.errors import DivergedError
from leanresnet.training.averaging import MovingAverage, compute_batch_norm
from leanresnet.training.loader import EvalBatches, TrainBatches
from leanresnet.training.sam import SharpnessAware
from leanresnet.training.schedules import LearningRate
from leanresnet.training.selection import ProxySelection
from leanresnet.training.state import EpochMeter, TrainState
from leanresnet.training.validation import Measure, Metrics, count_correct, evaluate

# (network, images, labels) -> (loss, logits)
Criterion = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
# (images, labels) -> (loss, number of correct predictions); a step differentiates the loss.
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Number of training images from which batch norm's statistics are computed for the averaged weights, in each epoch.
NORM_IMAGES = 10_000


@dataclass(frozen=True)
class StepConfig:
    """What a training step needs besides the network and the data.

    Args:
        objective: see `objective_of`; compiled or not.
        optimizer: the optimizer of the network's parameters.
        schedule: the schedule of the optimizer's learning rate.
        autocast: a reusable context, entered around each forward pass.
        max_grad_norm: largest L2 norm of the gradient, or None for no clipping.
        sam: the perturbation of the weights for a second pass, or None for steps with one pass.
        selection: the choice of the images of each batch from which the network learns, or None for all of them.
        world: the processes that share each batch.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: LearningRate
    autocast: AbstractContextManager[object]
    max_grad_norm: float | None
    sam: SharpnessAware | None = None
    selection: ProxySelection | None = None
    world: DistributedContext = SINGLE_PROCESS


def objective_of(net: nn.Module, criterion: Criterion) -> Objective:
    """Join the network and its loss to one function, which `torch.compile` compiles to one graph.

    The function takes images (B, 3, H, W) and labels, and returns the loss and the number of correct predictions, see
    `count_correct`.
    """

    def objective(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = criterion(net, images, labels)
        return loss, count_correct(logits, labels)

    return objective


def fit(
    net: nn.Module,
    train: TrainBatches,
    validation: EvalBatches,
    step_config: StepConfig,
    *,
    epochs: int,
    seed: int,
    ema_decay: float | None,
    measures: dict[str, Measure],
    log_metrics: Callable[[Metrics, int], None],
    start: Mapping[str, Any] | None = None,
    on_step_end: Callable[[TrainState], None] = lambda train_state: None,
) -> TrainState:
    """Train `net` and validate it after each epoch.

    With `ema_decay`, the averaged weights are validated. The running statistics of batch norm do not fit them, so they
    are computed anew from the first batches of the epoch; with a selection, from the images that it chooses in them.
    The logged `images_per_second` and `train_seconds` include the time that this takes, and exclude validation. The
    caller's random state is restored.

    Args:
        epochs: number of the last epoch; epochs are counted from 1.
        seed: seed of what the network draws, such as stochastic depth.
        ema_decay: decay of the exponential moving average of the weights, or None for no average.
        measures: what is measured on the validation images, by name.
        log_metrics: called after each epoch with its metrics and its number.
        start: a `TrainState.state_dict()` from which to resume, or None. A resumed training equals one that was never
            interrupted.
        on_step_end: called with the state of the training after each step, each epoch, and each batch of validation
            and of batch norm's statistics. It may save the state, or end the training by an exception.

    Returns:
        The state after the last epoch, with the history and the best weights.

    Raises:
        DivergedError: if a loss, a metric or a weight is NaN or infinite.
    """
    average = MovingAverage(net, ema_decay) if ema_decay else None
    eval_model = average.module if average else net
    gpus = {parameter.device for parameter in net.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(gpus):
        others = {"average": average, "selection": step_config.selection}
        train_state = TrainState(net, step_config.optimizer, step_config.schedule, others, seed)
        if start is not None:
            train_state.load_state_dict(start)
        first = train_state.epoch
        bar = tqdm(
            range(first, epochs + 1), "epochs", epochs, initial=first - 1, unit="epoch", disable=_quiet(step_config)
        )
        with bar:
            for epoch in bar:
                meter, rate = train_state.meter, train_state.rate
                try:
                    after_step = partial(on_step_end, train_state)
                    trained = train_one_epoch(
                        net,
                        _steps(train, train_state, epochs, _quiet(step_config)),
                        step_config,
                        average,
                        meter,
                        after_step,
                    )
                except DivergedError as error:
                    raise DivergedError(f"epoch {epoch}, {error}") from None
                with step_config.autocast:
                    begun = time.perf_counter()
                    if average is not None:
                        train_state.seed_draws()
                        whole = islice(train.epoch(epoch), math.ceil(NORM_IMAGES / train.batch_size))
                        images: Iterable[tuple[Tensor, Tensor]] = whole
                        if step_config.selection is not None:
                            images = starmap(step_config.selection.choose, whole)
                        compute_batch_norm(eval_model, _with_callback(images, after_step))
                        train_state.wait()
                    norm_seconds = time.perf_counter() - begun
                    step_config.world.broadcast_buffers(eval_model)
                    validated = evaluate(
                        eval_model, _with_callback(validation, after_step), measures, step_config.world
                    )
                # This time is added after validation, because a training that is resumed from a state saved during
                # validation computes the statistics again.
                meter.seconds += norm_seconds
                step_config.schedule.end_epoch(validated["loss"])
                if step_config.selection is not None:
                    step_config.selection.end_epoch(validated["loss"])
                row = {"lr": rate}
                row |= {f"train/{name}": value for name, value in trained.items()}
                row |= {f"val/{name}": value for name, value in validated.items()}
                train_state.end_epoch(row, eval_model)
                speed = len(train) * train.batch_size / meter.seconds
                best = train_state.history[train_state.best_epoch - 1]["val/accuracy"]
                timing = {"images_per_second": speed, "train_seconds": train_state.seconds}
                log_metrics({**row, "val/best_accuracy": best, **timing}, epoch)
                on_step_end(train_state)
    return train_state


def train_one_epoch(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    step_config: StepConfig,
    average: MovingAverage | None = None,
    meter: EpochMeter | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> Metrics:
    """Take one step for each of `batches`, and wait for the device at the end.

    Args:
        batches: pairs of images (B, 3, H, W) and labels, (B,) or (B, classes).
        average: moving average of the weights, updated after each step, or None.
        meter: the earlier steps of a resumed epoch, or None.
        after_step: called after each step.

    Returns:
        `loss` and `accuracy`, as means over the augmented images, each measured in its step. With a selection, these
        are the chosen images, and `proxy_loss` and `proxy_accuracy` are those of the proxy on all of them.

    Raises:
        DivergedError: if a loss is NaN or infinite.
    """
    selection = step_config.selection
    net.train()
    meter = meter or EpochMeter()
    begun = time.perf_counter() - meter.seconds
    for whole_images, whole_labels in batches:
        if selection is not None:
            whole_images, whole_labels = selection.select(whole_images, whole_labels)
        images, labels = step_config.world.shard(whole_images), step_config.world.shard(whole_labels)
        step_config.optimizer.zero_grad(set_to_none=True)
        with step_config.autocast:
            loss, right = step_config.objective(images, labels)
        loss.backward()
        if step_config.sam is not None:
            with step_config.sam.perturbed_weights():
                step_config.optimizer.zero_grad(set_to_none=True)
                with step_config.autocast:
                    perturbed_loss, _ = step_config.objective(images, labels)
                perturbed_loss.backward()
        if step_config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), step_config.max_grad_norm)
        loss, right = step_config.world.reduce_step(loss, right)
        meter.watch.see(loss, len(meter.losses) + 1, step_config.schedule.value)
        step_config.optimizer.step()
        step_config.schedule.step()
        if selection is not None:
            selection.step()
        if average is not None:
            average.update(net)
        meter.add(loss, right, len(whole_labels))
        meter.seconds = time.perf_counter() - begun
        after_step()
    meter.watch.settle()
    metrics = meter.metrics() | (selection.metrics() if selection is not None else {})
    meter.seconds = time.perf_counter() - begun
    return metrics


def _quiet(step_config: StepConfig) -> bool | None:
    """Return tqdm's `disable`: None shows a bar if there is a terminal, True shows none."""
    return None if step_config.world.is_main_process else True


def _steps(
    train: TrainBatches, train_state: TrainState, epochs: int, quiet: bool | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the remaining batches of the epoch, with a progress bar if there is a terminal."""
    label, done = f"epoch {train_state.epoch}/{epochs}", train_state.step
    rest = train.epoch(train_state.epoch, done)
    yield from tqdm(rest, label, len(train), leave=False, initial=done, position=1, unit="step", disable=quiet)


def _with_callback(
    batches: Iterable[tuple[Tensor, Tensor]], on_step_end: Callable[[], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Call `on_step_end` after each of the batches."""
    for batch in batches:
        yield batch
        on_step_end()
