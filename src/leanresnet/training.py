"""One fit of a recipe: what it teaches, and how each of its processes does it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from leanresnet.assembly import Assembly, assemble
from leanresnet.config import Recipe
from leanresnet.data.batches import EvalBatches
from leanresnet.data.splits import Split
from leanresnet.device import engine
from leanresnet.distributed import ALONE, World
from leanresnet.errors import MemoryLimitError
from leanresnet.evaluation import MEASURES, Measure, Metrics
from leanresnet.interruption import before_a_compilation
from leanresnet.memory import is_out_of_memory, largest_fit
from leanresnet.progress import Progress
from leanresnet.trainer import Criterion, fit, objective_of, train_one_epoch
from leanresnet.work import Keeper

# Runs that were not distilled carry these too, so that runs compare without a missing column.
NOT_DISTILLED: dict[str, str | float] = {
    "distill.teacher": "none",
    "distill.alpha": 0.0,
    "distill.temperature": 1.0,
    "distill.beta": "none",
    "distill.attention": 0.0,
}


@dataclass(frozen=True)
class Lesson:
    """What a stage adds to a recipe: its loss, what it measures on validation, and what it distills from.

    `key` is the recipe's place, "params.yaml: train.baseline". `params` are tracked as they are.
    `teacher_sha256` is of the teacher's weights.
    """

    stage: str
    key: str
    criterion: Criterion
    measures: dict[str, Measure] = field(default_factory=lambda: dict(MEASURES))
    params: dict[str, str | float] = field(default_factory=lambda: dict(NOT_DISTILLED))
    teacher_sha256: str | None = None


@dataclass(frozen=True)
class Training:
    """All that a fit takes but its state, the same in each process."""

    recipe: Recipe
    lesson: Lesson
    train: Split
    validation: Split
    device: torch.device
    world: World

    def run(
        self, start: Mapping[str, Any] | None, log_metrics: Callable[[Metrics, int], None], keeper: Keeper
    ) -> Progress:
        """From the first process's `start`, where it gives one."""
        recipe = self.recipe
        with engine(self.device, recipe.deterministic), before_a_compilation(keeper.save_latest):
            assembly = assemble(recipe, self.lesson.criterion, self.train, self.device, self.world)
            try:
                return fit(
                    assembly.net,
                    assembly.batches,
                    EvalBatches(self.validation, recipe.batch_size, self.device),
                    assembly.loop,
                    epochs=recipe.epochs,
                    seed=recipe.seed,
                    ema_decay=recipe.ema_decay,
                    measures=self.lesson.measures,
                    log_metrics=log_metrics,
                    start=self.world.receive(start),
                    offer=keeper,
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            fitting = self._fitting(assembly)
        hint = "none was found" if fitting is None else f"{fitting}, which was tried and fits"
        raise MemoryLimitError(f"{self.lesson.key}.batch_size = {recipe.batch_size}: out of memory, accepted: {hint}")

    def _fitting(self, assembly: Assembly) -> int | None:
        """A batch of which this process's share fits."""
        loop = replace(assembly.loop, objective=objective_of(assembly.net, self.lesson.criterion), world=ALONE)
        images, labels = next(assembly.batches.epoch(1))
        share = largest_fit(
            len(labels) // self.world.size,
            lambda count: train_one_epoch(assembly.net, [(images[:count], labels[:count])], loop),
        )
        return None if share is None else share * self.world.size
