"""The construction of a training from a recipe: the network, its batches, the loss, the optimizer and the schedule."""

from dataclasses import dataclass

import torch

from leanresnet.compute.compilation import CompiledFunction
from leanresnet.compute.device import autocast
from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext, convert_sync_batch_norm
from leanresnet.config.schema import Recipe
from leanresnet.data.splits import Split
from leanresnet.errors import warn
from leanresnet.models.resnet import ResNet, build_model
from leanresnet.training.loader import TrainBatches
from leanresnet.training.loop import Criterion, StepConfig, objective_of
from leanresnet.training.optimizers import build_optimizer
from leanresnet.training.sam import SharpnessAware
from leanresnet.training.schedules import build_schedule

# Jordan uses 5,000 images and Page 10,000. 5,000 images have 4.8 million patches, plenty to estimate 12 directions.
WHITENING_IMAGES = 5000
LEAST_STD = 1 / 255


@dataclass(frozen=True)
class TrainingSetup:
    """The objects that the training loop works on."""

    net: ResNet
    batches: TrainBatches
    step_config: StepConfig


def build_training(
    recipe: Recipe, criterion: Criterion, train: Split, device: torch.device, world: DistributedContext = SINGLE_PROCESS
) -> TrainingSetup:
    """Build everything that one process of `world` needs to train `recipe` on `train` with `criterion`.

    The result depends on process-wide settings: build and use it inside
    `backend_settings(device, recipe.deterministic)`.
    """
    mean, std = train.channel_statistics
    # A channel that is the same in all images would be divided by zero.
    std = tuple(max(each, LEAST_STD) for each in std)
    net = build_model(
        recipe.model,
        recipe.normalization.mean or mean,
        recipe.normalization.std or std,
        recipe.seed,
        recipe.bn_momentum,
        recipe.initialization,
        train.images[:WHITENING_IMAGES].to(device),
        recipe.stochastic_depth,
        len(train.classes),
    ).to(device)
    compile_step = recipe.compile
    if recipe.sync_batch_norm and world.size > 1:
        convert_sync_batch_norm(net)
        if recipe.compile and world.is_main_process:
            warn("sync_batch_norm exchanges statistics within a step, so torch.compile is not used")
        # The exchange cannot be part of a graph, and a step is compiled as one graph.
        compile_step = False
    batches = TrainBatches(
        train, recipe.batch_size, recipe.augmentation, recipe.seed, device, recipe.progressive_resizing
    )
    optimizer = build_optimizer(net, recipe.optimizer)
    objective = objective_of(net, criterion)
    step_config = StepConfig(
        objective=world.wrap_objective(net, CompiledFunction(objective) if compile_step else objective),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, recipe.schedule, recipe.epochs, len(batches)),
        autocast=autocast(device, recipe.precision),
        max_grad_norm=recipe.max_grad_norm,
        sam=SharpnessAware(net, recipe.sam) if recipe.sam.rho else None,
        world=world,
    )
    return TrainingSetup(net, batches, step_config)
