"""Seconds of a training and the accuracy that it reaches: a recipe, on real data, once a seed."""

import copy
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bench.options import changed
from bench.report import record, wait
from leanresnet.compute.device import backend_settings, exact_float32
from leanresnet.config.schema import Recipe
from leanresnet.data.splits import Split, load_split
from leanresnet.training.build import build_training
from leanresnet.training.loader import EvalBatches
from leanresnet.training.loop import train_one_epoch
from leanresnet.training.losses import CrossEntropy
from leanresnet.training.optimizers import build_optimizer
from leanresnet.training.schedules import build_schedule
from leanresnet.training.validation import evaluate


def time_to_target(data: Path, name: str, recipe: Recipe, seeds: Iterable[int], device: torch.device) -> None:
    """Train on `data`/train.safetensors; test accuracy of the last epoch, no test-time augmentation.

    Set-up is what reads the data before the first step: statistics, whitening, padding, upload. Where the recipe is
    compiled, later seeds find the compiler's cache.
    """
    train, test = (load_split(data / f"{part}.safetensors") for part in ("train", "test"))
    for seed in seeds:
        seeded = changed(recipe, {"seed": seed})
        with backend_settings(device, seeded.deterministic):
            set_up, warm_up, seconds, net = _train(seeded, train, device)
        with exact_float32():
            accuracy = evaluate(net, EvalBatches(test, 500, device))["accuracy"]
        context = {"preset": name, "seed": seed, "compiled": recipe.compile}
        record("target/test_accuracy", 100 * accuracy, "%", **context, training_images=len(train))
        record("target/training", seconds, "s", **context, epochs=recipe.epochs)
        record("target/set_up", set_up, "s", **context)
        record("target/warm_up", warm_up, "s", **context)


def _train(recipe: Recipe, train: Split, device: torch.device) -> tuple[float, float, float, nn.Module]:
    """Seconds of set-up, of compilation and of training, and the network."""
    begun = time.perf_counter()
    setup = build_training(recipe, CrossEntropy(recipe.label_smoothing), train, device)
    net, batches = setup.net, setup.batches
    wait(device)
    ready = time.perf_counter()
    selection = setup.step_config.selection
    fresh = copy.deepcopy((net.state_dict(), selection.state_dict() if selection else {}))
    for epoch in {1, recipe.progressive_resizing.epochs + 1}:
        train_one_epoch(net, [next(iter(batches.epoch(epoch)))] * 2, setup.step_config)
    # The graphs stay compiled; weights, optimizer, schedule and proxy begin anew.
    net.load_state_dict(fresh[0])
    if selection:
        selection.load_state_dict(fresh[1])
    optimizer = build_optimizer(net, recipe.optimizer)
    schedule = build_schedule(optimizer, recipe.schedule, recipe.epochs, len(batches))
    loop = replace(setup.step_config, optimizer=optimizer, schedule=schedule)
    wait(device)
    compiled_at = time.perf_counter()
    for epoch in range(1, recipe.epochs + 1):
        train_one_epoch(net, batches.epoch(epoch), loop)
    wait(device)
    return ready - begun, compiled_at - ready, time.perf_counter() - compiled_at, net
