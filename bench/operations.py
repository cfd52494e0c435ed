"""How many operations a step consists of, counted without a GPU: an eager step launches a kernel or more for each."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.options import OPTIONS, changed, preset
from bench.report import record
from bench.trainers import Engine

# These return a tensor without a kernel.
ALLOCATIONS = {"aten::empty_like", "aten::empty", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
# On a GPU, torch's other optimizers take foreach operations that they do not take here.
COUNTED = ("default", "muon", "clipped", "averaged", "sam", "asam", "distilled", "attention", "mixup", "cutmix")
READ = "aten::_local_scalar_dense"


class Counting(TorchDispatchMode):
    """Counts operations by name, without views and allocations. A foreach operation counts once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not func.is_view and name not in ALLOCATIONS:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def operations() -> None:
    """Operations of an eager step of the default's network with each option, and how many values it reads back.

    A read waits for a GPU, except the loss's own, which a GPU's step replaces by a copy that it does not wait for. The
    augmentation of a batch is included, and what an epoch does once is not.
    """
    for name in COUNTED:
        option = OPTIONS[name]
        recipe = changed(preset("default"), {**option.changes, "batch_size": 2})
        trainer = Engine(recipe, 4, torch.device("cpu"), "eager", option.criterion(recipe, torch.device("cpu")))
        trainer.take([trainer.batch])
        batches = trainer.batches.epoch(2)
        next(batches)
        one, two = (_count(trainer, [batches] * steps) for steps in (1, 2))
        # The difference leaves out the end of an epoch.
        step = two - one
        record(f"operations/{name}", step.total() - step[READ], "a step", reads=step[READ] - 1)


def _count(trainer: Engine, batches: list[Iterator[tuple[Tensor, Tensor]]]) -> Counter[str]:
    counting = Counting()
    with counting:
        trainer.take(next(each) for each in batches)
    return counting.calls
