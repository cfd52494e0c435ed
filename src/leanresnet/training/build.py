"""A recipe, its data and a device put together: the network, its batches and what a step needs."""

from dataclasses import dataclass

import torch

from leanresnet.compute.compilation import compiled
from leanresnet.compute.device import autocast
from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext, convert_sync_batch_norm
from leanresnet.config.schema import Recipe
from leanresnet.data.splits import Split, channel_statistics
from leanresnet.models.resnet import ResNet, build_model
from leanresnet.training.loader import TrainBatches
from leanresnet.training.loop import Criterion, StepConfig, objective_of
from leanresnet.training.optimizers import build_optimizer
from leanresnet.training.sam import SharpnessAware
from leanresnet.training.schedules import build_schedule

# As many as Jordan takes, Page takes 10,000; their 4.8 million patches say all there is to know of 12 directions.
WHITENING_IMAGES = 5000


@dataclass(frozen=True)
class TrainingSetup:
    net: ResNet
    batches: TrainBatches
    loop: StepConfig


def build_training(
    recipe: Recipe, criterion: Criterion, train: Split, device: torch.device, world: DistributedContext = SINGLE_PROCESS
) -> TrainingSetup:
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
        convert_sync_batch_norm(net)
    batches = TrainBatches(train, recipe.batch_size, recipe.augmentation, recipe.seed, device, recipe.progressive)
    optimizer = build_optimizer(net, recipe.optimizer)
    objective = objective_of(net, criterion)
    loop = StepConfig(
        objective=world.wrap_objective(net, compiled(objective) if recipe.compile else objective),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, recipe.schedule, recipe.epochs, len(batches)),
        autocast=autocast(device, recipe.precision),
        clip_norm=recipe.clip_norm,
        sharpness=SharpnessAware(net, recipe.sharpness) if recipe.sharpness.rho else None,
        world=world,
    )
    return TrainingSetup(net, batches, loop)
