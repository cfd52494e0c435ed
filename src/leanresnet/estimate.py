"""A rough time for a recipe on this device, from a few training steps."""

import statistics
import time

import torch

from leanresnet.config import Recipe
from leanresnet.device import autocast
from leanresnet.evaluation import measure_speed
from leanresnet.losses import CrossEntropy
from leanresnet.models.resnet import build_model
from leanresnet.optim import build_optimizer, build_schedule
from leanresnet.trainer import Loop, objective_of, train_one_epoch


def seconds_per_epoch(recipe: Recipe, images: int, device: torch.device) -> float:
    """The median of three training steps on random pixels, times the steps of `images` images."""
    net = build_model(recipe.model, [0.5] * 3, [0.25] * 3, recipe.seed).to(device)
    pixels = torch.randint(256, (recipe.batch_size, 3, 32, 32), dtype=torch.uint8, device=device)
    batch = (pixels.contiguous(memory_format=torch.channels_last), torch.arange(recipe.batch_size, device=device) % 10)
    optimizer = build_optimizer(net, recipe.optimizer)
    schedule = build_schedule(optimizer, recipe.schedule, recipe.epochs, 10)
    objective = objective_of(net, CrossEntropy(0.0))
    loop = Loop(objective, optimizer, schedule, autocast(device, recipe.precision), recipe.clip_norm)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        train_one_epoch(net, [batch], loop)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]) * images / recipe.batch_size


def seconds_per_inference(recipe: Recipe, images: int, device: torch.device) -> float:
    """What a teacher adds to a student's epoch of `images` images."""
    net = build_model(recipe.model, [0.5] * 3, [0.25] * 3, recipe.seed).to(device)
    pixels = torch.zeros(recipe.batch_size, 3, 32, 32, dtype=torch.uint8, device=device)
    with autocast(device, recipe.precision), torch.no_grad():
        speed = measure_speed(net, pixels.contiguous(memory_format=torch.channels_last), repeats=3)
    return images / speed["throughput"]
