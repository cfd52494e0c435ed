"""Detection of a batch that does not fit into memory, and the search for a batch size that fits."""

import ctypes
import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch

from leanresnet.errors import MemoryLimitError
from leanresnet.training.fit import Training
from leanresnet.training.state import TrainState
from leanresnet.training.validation import Metrics

# Only torch's allocator for a GPU has an error of its own. All others raise a plain RuntimeError with such a message.
MESSAGES = (
    "can't allocate memory",  # torch's allocator for a CPU
    "could not create a primitive",  # oneDNN
    "CUDA error: out of memory",  # CUDA's context, modules and pinned memory
    "STATUS_ALLOC_FAILED",  # cuBLAS, cuSOLVER, cuSPARSE, cuDNN 8
    "ALLOCATION_FAILED",  # cuDNN 9, on the host and on the device
    "unable to find an engine to execute this computation",  # cuDNN, if the workspace of no kernel fits
    "CUDA driver error: out of memory",  # the kernels of torch.compile, when they are loaded
    "[CUDA]: out of memory",  # Triton
)


def run_or_name_batch(
    training: Training,
    start: Mapping[str, Any] | None,
    log_metrics: Callable[[Metrics, int], None],
    on_step_end: Callable[[TrainState], None],
) -> TrainState:
    """Call `Training.run`; if memory runs out, find a batch size that fits and name it in the error.

    The arguments are those of `Training.run`.

    Raises:
        MemoryLimitError: if a batch does not fit into memory.
    """
    try:
        return training.run(start, log_metrics, on_step_end)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    # This is outside of the handler, because its traceback keeps the tensors of the failed step alive.
    if training.recipe.compile:
        # The compiled functions keep the memory of their CUDA graphs, and the steps that are tried are not compiled.
        torch.compiler.reset()
    batch_size, processes = training.recipe.batch_size, training.world.size
    share = largest_fit(batch_size // processes, training.try_step)
    hint = (
        f"more memory, because no smaller batch fits ({reason})"
        if share is None
        else f"{share * processes}, which was tried and fits"
    )
    raise MemoryLimitError(f"{training.task.key}.batch_size = {batch_size}: out of memory, expected: {hint}")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on a GPU or on a CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in MESSAGES)
    )


def largest_fit(batch_size: int, step: Callable[[int], object]) -> int | None:
    """Return the largest batch size that fits among a half of `batch_size`, a quarter, and so on; None if none fits.

    The smallest size that is tried is 2.

    Args:
        step: takes one training step with the given number of images.
    """
    while batch_size >= 4:
        batch_size //= 2
        _release_memory()
        try:
            step(batch_size)
            return batch_size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
    return None


def _release_memory() -> None:
    """Return memory to the system that was freed, but cached by torch or by the C library."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
