"""One training of a recipe, as each of its processes runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from leanresnet.compute.device import backend_settings
from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext
from leanresnet.config.schema import Recipe
from leanresnet.data.splits import Split
from leanresnet.training.build import build_training
from leanresnet.training.loader import EvalBatches
from leanresnet.training.loop import fit, train_one_epoch
from leanresnet.training.state import TrainState
from leanresnet.training.tasks import TrainingTask
from leanresnet.training.validation import Metrics


@dataclass(frozen=True)
class Training:
    """Everything that a training needs except its state; it is the same in each process.

    Args:
        recipe: the section of params.yaml.
        task: the loss and the measures.
        train, validation: the splits.
        device: the device of this process.
        world: the processes of the training.
    """

    recipe: Recipe
    task: TrainingTask
    train: Split
    validation: Split
    device: torch.device
    world: DistributedContext

    def run(
        self,
        start: Mapping[str, Any] | None,
        log_metrics: Callable[[Metrics, int], None],
        on_step_end: Callable[[TrainState], None],
    ) -> TrainState:
        """Train to the last epoch.

        Args:
            start: the state from which the first process resumes, or None to train from the start.
            log_metrics: takes the metrics of an epoch and its number.
            on_step_end: see `training.loop.fit`.

        Raises:
            DivergedError: a loss is NaN or infinite.
        """
        recipe = self.recipe
        with backend_settings(self.device, recipe.deterministic):
            setup = build_training(recipe, self.task.criterion, self.train, self.device, self.world)
            return fit(
                setup.net,
                setup.batches,
                EvalBatches(self.validation, recipe.batch_size, self.device),
                setup.step_config,
                epochs=recipe.epochs,
                seed=recipe.seed,
                ema_decay=recipe.ema_decay,
                measures=self.task.measures,
                log_metrics=log_metrics,
                start=self.world.broadcast_state(start),
                on_step_end=on_step_end,
            )

    def try_step(self, images: int) -> None:
        """Take one uncompiled step in this process alone: a new network on `images` images of the last epoch's size."""
        recipe = self.recipe.model_copy(update={"compile": False, "sync_batch_norm": False})
        with backend_settings(self.device, recipe.deterministic):
            # cuDNN would search the fastest kernels for this one step. What fits without the search fits with it.
            torch.backends.cudnn.benchmark = False
            setup = build_training(recipe, self.task.criterion, self.train, self.device, SINGLE_PROCESS)
            batch, labels = next(setup.batches.epoch(recipe.epochs))
            train_one_epoch(setup.net, [(batch[:images], labels[:images])], setup.step_config)
