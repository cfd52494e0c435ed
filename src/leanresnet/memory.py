"""When a batch does not fit into memory: which one would."""

import ctypes
import gc
from collections.abc import Callable

import torch


def is_out_of_memory(error: BaseException) -> bool:
    # On a CPU neither torch's allocator nor oneDNN has an exception of its own.
    said = ("can't allocate memory", "could not create a primitive")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in said)


def largest_fit(batch_size: int, step: Callable[[int], object]) -> int | None:
    """The first that fits of a half of `batch_size`, a quarter, ... down to 2; None if none does.

    To be called outside of the handler of the error that made it necessary: its traceback holds
    the tensors of the step that failed.

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
