"""An estimate of the training time of a recipe on this device, from a few training steps."""

import statistics
import time

import torch

from leanresnet.compute.device import autocast, backend_settings
from leanresnet.config.schema import Recipe
from leanresnet.data.splits import Split
from leanresnet.evaluation.predictions import measure_speed
from leanresnet.models.resnet import build_model
from leanresnet.training.build import build_training, training_threads
from leanresnet.training.loop import train_one_epoch
from leanresnet.training.losses import CrossEntropy


def training_seconds(recipe: Recipe, images: int, classes: int, device: torch.device) -> tuple[float, float]:
    """Estimate the time of a training by four steps on random pixels, compiled if the recipe asks for it.

    Args:
        images, classes: numbers of training images and of classes.

    Returns:
        (seconds before the second step, which a compilation takes; seconds of an epoch by the median of the others)
    """
    if recipe.compile:
        # A stage is a process of its own, so it does not find what an estimate before this one compiled.
        torch.compiler.reset()
    # The schedule of a recipe with one epoch has to last for the four steps below.
    count = 4 * recipe.batch_size
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    split = Split(pixels, torch.arange(count) % classes, tuple(map(str, range(classes))), "random")
    with training_threads(recipe, classes, device), backend_settings(device, recipe.deterministic):
        setup = build_training(recipe, CrossEntropy(0.0), split, device)
        batch = next(iter(setup.batches.epoch(recipe.epochs)))
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            train_one_epoch(setup.net, [batch], setup.step_config)
            seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[1:])
    return max(seconds[0] - step, 0.0), step * images / recipe.batch_size


def seconds_per_inference(recipe: Recipe, images: int, classes: int, device: torch.device) -> float:
    """Estimate the seconds that a teacher with this recipe and `classes` adds to a student's epoch of `images`."""
    net = build_model(recipe.model, [0.5] * 3, [0.25] * 3, recipe.seed, classes=classes).to(device)
    pixels = torch.zeros(recipe.batch_size, 3, 32, 32, dtype=torch.uint8, device=device)
    with autocast(device, recipe.precision), torch.no_grad():
        speed = measure_speed(net, pixels.contiguous(memory_format=torch.channels_last), repeats=3)
    return images / speed["throughput"]
