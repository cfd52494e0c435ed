"""A recipe, its data and a device put together: the network, its batches and what a step needs."""

from dataclasses import dataclass

import torch

from leanresnet.compilation import compiled
from leanresnet.config import Recipe
from leanresnet.data.batches import TrainBatches
from leanresnet.data.splits import Split, channel_statistics
from leanresnet.device import autocast
from leanresnet.distributed import ALONE, World, synchronise_norms
from leanresnet.models.resnet import ResNet, build_model
from leanresnet.optim import build_optimizer
from leanresnet.schedule import build_schedule
from leanresnet.sharpness import SharpnessAware
from leanresnet.trainer import Criterion, Loop, objective_of

# As many as Jordan takes, Page takes 10,000; their 4.8 million patches say all there is to know of 12 directions.
WHITENING_IMAGES = 5000


@dataclass(frozen=True)
class Assembly:
    net: ResNet
    batches: TrainBatches
    loop: Loop


def assemble(
    recipe: Recipe, criterion: Criterion, train: Split, device: torch.device, world: World = ALONE
) -> Assembly:
    """Everything that training `recipe` on `train` with `criterion` takes, on `device`, in this process of `world`.

    To be called and used inside `engine(device, recipe.deterministic)`.
    """
    measured = channel_statistics(train)
    net = build_model(
        recipe.model,
        recipe.normalization.mean or measured[0],
        recipe.normalization.std or measured[1],
        recipe.seed,
        recipe.bn_momentum,
        recipe.initialization,
        train.images[:WHITENING_IMAGES],
        recipe.stochastic_depth,
    ).to(device)
    if recipe.sync_batch_norm and world.size > 1:
        synchronise_norms(net)
    batches = TrainBatches(train, recipe.batch_size, recipe.augmentation, recipe.seed, device, recipe.progressive)
    optimizer = build_optimizer(net, recipe.optimizer)
    objective = objective_of(net, criterion)
    loop = Loop(
        objective=world.parallel(net, compiled(objective) if recipe.compile else objective),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, recipe.schedule, recipe.epochs, len(batches)),
        autocast=autocast(device, recipe.precision),
        clip_norm=recipe.clip_norm,
        sharpness=SharpnessAware(net, recipe.sharpness) if recipe.sharpness.rho else None,
        world=world,
    )
    return Assembly(net, batches, loop)
