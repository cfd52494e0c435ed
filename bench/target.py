"""Seconds of training to an accuracy: a preset's baseline, on real data, once a seed."""

import copy
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from bench.report import record
from bench.trainers import ROOT
from leanresnet.assembly import assemble
from leanresnet.config import Recipe, load_params
from leanresnet.data.batches import EvalBatches
from leanresnet.data.splits import Split, load_split
from leanresnet.device import engine
from leanresnet.evaluation import evaluate
from leanresnet.losses import CrossEntropy
from leanresnet.optim import build_optimizer, build_schedule
from leanresnet.trainer import train_one_epoch


def time_to_target(data: Path, preset: str, seeds: int, device: torch.device) -> None:
    """Train on `data`/train.safetensors; test accuracy of the last epoch, in float32, no test-time augmentation."""
    recipe = load_params(ROOT / "presets" / f"{preset}.yaml").train.baseline
    train, test = (load_split(data / f"{name}.safetensors") for name in ("train", "test"))
    accuracies, times, first = [], [], []
    for seed in range(seeds):
        seeded = Recipe.model_validate(recipe.model_dump() | {"seed": seed})
        with engine(device, seeded.deterministic):
            warm_up, seconds, accuracy = _train(seeded, train, test, device)
        accuracies.append(100 * accuracy)
        times.append(seconds)
        first.append(warm_up)
        print(f"seed {seed}: {accuracy:.2%} after {seconds:.1f} s; compilation {warm_up:.1f} s", flush=True)
    context = {"preset": preset, "seeds": seeds, "training_images": len(train)}
    record("target/test_accuracy", statistics.mean(accuracies), "%", lowest=round(min(accuracies), 2), **context)
    record("target/training_seconds", statistics.median(times), "s", **context)
    record("target/compile_seconds", statistics.median(first), "s", **context)


def _train(recipe: Recipe, train: Split, test: Split, device: torch.device) -> tuple[float, float, float]:
    """Seconds of compilation, seconds of training, test accuracy."""
    begun = time.perf_counter()
    assembly = assemble(recipe, CrossEntropy(recipe.label_smoothing), train, device)
    net, batches = assembly.net, assembly.batches
    fresh = copy.deepcopy(net.state_dict())
    for epoch in {1, recipe.progressive.epochs + 1}:
        train_one_epoch(net, [next(iter(batches.epoch(epoch)))] * 2, assembly.loop)
    # The graphs stay compiled; weights, optimizer and schedule begin anew.
    net.load_state_dict(fresh)
    optimizer = build_optimizer(net, recipe.optimizer)
    schedule = build_schedule(optimizer, recipe.schedule, recipe.epochs, len(batches))
    loop = replace(assembly.loop, optimizer=optimizer, schedule=schedule)
    compiled_at = time.perf_counter()
    for epoch in range(1, recipe.epochs + 1):
        train_one_epoch(net, batches.epoch(epoch), loop)
    trained_at = time.perf_counter()
    accuracy = evaluate(net, EvalBatches(test, 500, device))["accuracy"]
    return compiled_at - begun, trained_at - compiled_at, accuracy
