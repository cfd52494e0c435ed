"""A training whose batch does not fit into memory, and the batch that would."""

import ctypes
import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch

from leanresnet.errors import MemoryLimitError
from leanresnet.training.fit import Training
from leanresnet.training.state import TrainState
from leanresnet.training.validation import Metrics


def run_or_name_batch(
    training: Training,
    start: Mapping[str, Any] | None,
    log_metrics: Callable[[Metrics, int], None],
    on_step_end: Callable[[TrainState], None],
) -> TrainState:
    """`Training.run`, where running out of memory becomes an error that names a batch size which fits.

    Raises:
        MemoryLimitError: a batch does not fit into memory.
    """
    try:
        return training.run(start, log_metrics, on_step_end)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # The handler has ended here: its traceback held the tensors of the step that failed.
    batch_size, processes = training.recipe.batch_size, training.world.size
    share = largest_fit(batch_size // processes, training.try_step)
    hint = "none was found" if share is None else f"{share * processes}, which was tried and fits"
    raise MemoryLimitError(f"{training.task.key}.batch_size = {batch_size}: out of memory, expected: {hint}")


def is_out_of_memory(error: BaseException) -> bool:
    # On a CPU neither torch's allocator nor oneDNN has an exception of its own.
    said = ("can't allocate memory", "could not create a primitive")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in said)


def largest_fit(batch_size: int, step: Callable[[int], object]) -> int | None:
    """The first that fits of a half of `batch_size`, a quarter, ... down to 2; None if none does.

    Args:
        step: takes one training step with so many images.
    """
    while batch_size >= 4:
        batch_size //= 2
        _give_back()
        try:
            step(batch_size)
            return batch_size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
    return None


def _give_back() -> None:
    """To the system, what was freed and kept."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
