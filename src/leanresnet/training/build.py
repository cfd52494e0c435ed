"""The construction of a training from a recipe: the network, its batches, the loss, the optimizer and the schedule."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from leanresnet.compute.compilation import CompiledFunction
from leanresnet.compute.device import autocast, suitable_threads
from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext, convert_sync_batch_norm
from leanresnet.config.schema import Model, Recipe
from leanresnet.data.splits import Split
from leanresnet.errors import warn
from leanresnet.models.blocks import draw_for
from leanresnet.models.complexity import count_macs
from leanresnet.models.resnet import ResNet, build_model
from leanresnet.training.loader import TrainBatches
from leanresnet.training.loop import Criterion, StepConfig, objective_of
from leanresnet.training.optimizers import build_optimizer
from leanresnet.training.sam import SharpnessAware
from leanresnet.training.schedules import LearningRate, build_schedule
from leanresnet.training.selection import ProxySelection, proxy_objective

# Jordan uses 5,000 images and Page 10,000. 5,000 images have 4.8 million patches, plenty to estimate 12 directions.
WHITENING_IMAGES = 5000
LEAST_STD = 1 / 255


@dataclass(frozen=True)
class TrainingSetup:
    """The objects that the training loop works on."""

    net: ResNet
    batches: TrainBatches
    step_config: StepConfig


def training_threads(recipe: Recipe, classes: int, device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which torch has the number of threads of a training, see `suitable_threads`."""
    return suitable_threads(count_macs(recipe.model, classes) * recipe.batch_size, device)


def build_training(
    recipe: Recipe, criterion: Criterion, train: Split, device: torch.device, world: DistributedContext = SINGLE_PROCESS
) -> TrainingSetup:
    """Build everything that one process of `world` needs to train `recipe` on `train` with `criterion`.

    The result depends on process-wide settings: build and use it inside
    `backend_settings(device, recipe.deterministic)`.
    """
    net = _build_network(recipe, recipe.model, recipe.stochastic_depth, train, device)
    draw_for(net, world)
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
    optimizer, schedule = _build_optimizer(net, recipe, len(batches))
    objective = objective_of(net, criterion)
    if compile_step:
        objective = CompiledFunction(objective, replay=compile_step == "reduce-overhead")
    step_config = StepConfig(
        objective=world.wrap_objective(net, objective),
        optimizer=optimizer,
        schedule=schedule,
        autocast=autocast(device, recipe.precision),
        max_grad_norm=recipe.max_grad_norm,
        sam=SharpnessAware(net, recipe.sam) if recipe.sam.rho else None,
        selection=_build_selection(recipe, train, len(batches), device, world) if recipe.selection.keep < 1 else None,
        world=world,
    )
    return TrainingSetup(net, batches, step_config)


def _build_network(recipe: Recipe, model: Model, stochastic_depth: float, train: Split, device: torch.device) -> ResNet:
    mean, std = train.channel_statistics
    # A channel that is the same in all images would be divided by zero.
    std = tuple(max(each, LEAST_STD) for each in std)
    return build_model(
        model,
        recipe.normalization.mean or mean,
        recipe.normalization.std or std,
        recipe.seed,
        recipe.bn_momentum,
        recipe.initialization,
        # Taken at equal distances, because the images of a folder are sorted by class.
        train.images[:: -(-len(train) // WHITENING_IMAGES)].to(device),
        stochastic_depth,
        len(train.classes),
    ).to(device)


def _build_optimizer(net: ResNet, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, LearningRate]:
    """Return the optimizer and its schedule for epochs of `steps` steps."""
    optimizer = build_optimizer(net, recipe.optimizer)
    return optimizer, build_schedule(optimizer, recipe.schedule, recipe.epochs, steps)


def _build_selection(
    recipe: Recipe, train: Split, steps: int, device: torch.device, world: DistributedContext
) -> ProxySelection:
    """Return the selection by a proxy that is trained by the same recipe, on the labels alone."""
    # The proxy draws nothing, so the network's stochastic depth does not depend on it.
    net = _build_network(recipe, recipe.selection.proxy(recipe.model), 0.0, train, device)
    objective = proxy_objective(net, recipe.label_smoothing)
    return ProxySelection(
        recipe.selection,
        net,
        CompiledFunction(objective) if recipe.compile else objective,
        *_build_optimizer(net, recipe, steps),
        autocast(device, recipe.precision),
        recipe.max_grad_norm,
        world,
    )
