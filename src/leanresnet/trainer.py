"""The one training loop. It knows no recipe: the loss, the optimizer, the schedule, the data and
what is measured on validation are handed in; only `log_metrics(metrics, step)` leads out."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

from leanresnet.data.augmentation import seed_of
from leanresnet.data.batches import EvalBatches, TrainBatches
from leanresnet.errors import DivergedError
from leanresnet.evaluation import Measure, Metrics, evaluate
from leanresnet.optim import LearningRate
from leanresnet.sharpness import SharpnessAware

# (network, images, labels) -> the loss, and the network's logits.
Criterion = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
# (images, labels) -> the loss, and how many of them the network got right; what a step differentiates.
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Training images from which the averaged weights take batch norm's statistics, each epoch.
NORM_IMAGES = 10_000


@dataclass(frozen=True)
class Fitted:
    """One row of metrics an epoch, and the weights of the epoch with the best validation accuracy."""

    history: list[Metrics]
    best_epoch: int
    best_weights: dict[str, Tensor]


@dataclass(frozen=True)
class Loop:
    """What a step needs beside the network and the data.

    Args:
        objective: see `objective_of`; compiled or not.
        autocast: entered around each forward pass; it may be entered many times.
        clip_norm: the gradient's greatest L2 norm, or None.
        sharpness: where a second pass takes the gradient, or None: a step has one pass.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: LearningRate
    autocast: AbstractContextManager[object]
    clip_norm: float | None
    sharpness: SharpnessAware | None = None


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
    loop: Loop,
    *,
    epochs: int,
    seed: int,
    ema_decay: float | None,
    measures: dict[str, Measure],
    log_metrics: Callable[[Metrics, int], None],
) -> Fitted:
    """Train for `epochs` epochs, counted from 1; validate the averaged weights where `ema_decay` is given.

    The averaged weights belong to no step, so neither do the statistics that a batch norm kept on
    the way: they are taken anew, from the epoch's first batches.

    What the network itself draws (stochastic depth) is a function of (seed, epoch); the
    caller's random state is left as it was.

    Raises:
        DivergedError: the loss of an epoch is NaN or infinite.
    """
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)) if ema_decay else None
    judged = average.module if average else net
    history: list[Metrics] = []
    best_epoch, best_weights = 0, {}
    trained_seconds = 0.0
    gpus = {parameter.device for parameter in net.parameters() if parameter.is_cuda}
    bar = tqdm(range(1, epochs + 1), desc="epochs", unit="epoch", disable=None)
    with bar, torch.random.fork_rng(gpus):
        for epoch in bar:
            torch.manual_seed(seed_of(seed, epoch))
            start = time.perf_counter()
            rate = loop.schedule.value
            trained = train_one_epoch(net, _steps(train, epoch, epochs), loop, average)
            seconds = time.perf_counter() - start
            if not math.isfinite(trained["loss"]):
                raise DivergedError(f"epoch {epoch}: the training loss is {trained['loss']} at learning rate {rate:g}")
            with loop.autocast:
                if average is not None:
                    update_bn(islice(train.epoch(epoch), math.ceil(NORM_IMAGES / train.batch_size)), judged)
                validated = evaluate(judged, validation, measures)
            loop.schedule.end_epoch(validated["loss"])
            row = {"lr": rate}
            row |= {f"train/{name}": value for name, value in trained.items()}
            row |= {f"val/{name}": value for name, value in validated.items()}
            if not history or row["val/accuracy"] > history[best_epoch - 1]["val/accuracy"]:
                best_epoch, best_weights = epoch, copy.deepcopy(judged.state_dict())
            history.append(row)
            speed = len(train) * train.batch_size / seconds
            trained_seconds += seconds
            best = history[best_epoch - 1]["val/accuracy"]
            timing = {"images_per_second": speed, "train_seconds": trained_seconds}
            log_metrics({**row, "val/best_accuracy": best, **timing}, epoch)
            accuracy = f"train {trained['accuracy']:.2%}, val {validated['accuracy']:.2%}"
            bar.set_postfix_str(f"loss {trained['loss']:.3f}, {accuracy}, {speed:.0f} images/s")
    return Fitted(history, best_epoch, best_weights)


def train_one_epoch(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loop: Loop, average: AveragedModel | None = None
) -> Metrics:
    """One pass over `batches`; the device is waited for once, at the end.

    Returns:
        loss and accuracy, means over the augmented images as they were seen.
    """
    net.train()
    losses, hits, seen = [], [], 0
    for images, labels in batches:
        loop.optimizer.zero_grad(set_to_none=True)
        with loop.autocast:
            loss, right = loop.objective(images, labels)
        loss.backward()
        if loop.sharpness is not None:
            with loop.sharpness.uphill():
                loop.optimizer.zero_grad(set_to_none=True)
                with loop.autocast:
                    uphill, _ = loop.objective(images, labels)
                uphill.backward()
        if loop.clip_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), loop.clip_norm)
        loop.optimizer.step()
        loop.schedule.step()
        if average is not None:
            average.update_parameters(net)
        losses.append(loss.detach())
        hits.append(right)
        seen += len(labels)
    return {"loss": float(torch.stack(losses).mean()), "accuracy": float(torch.stack(hits).sum()) / seen}


def _steps(train: TrainBatches, epoch: int, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The epoch's batches behind a bar, where there is a terminal."""
    label = f"epoch {epoch}/{epochs}"
    yield from tqdm(train.epoch(epoch), label, len(train), leave=False, position=1, unit="step", disable=None)
