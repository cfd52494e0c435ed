"""torch.compile, where it works, and as long as no signal ends it."""

import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError

from leanresnet.errors import StoppedError
from leanresnet.interruption import requested_stop

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`torch.compile`, one graph for each shape; where that fails, one line says so and `function` runs as it is.

    The backward graph is compiled with the forward one, so that it fails here too or not at all.

    Raises:
        StoppedError: by a signal that came before or during a compilation, which may take a minute.
    """
    chosen: Callable[P, R] = torch.compile(function, dynamic=False, fullgraph=True)
    begun = False

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal chosen, begun
        if chosen is function:
            return function(*args, **kwargs)
        try:
            if not begun and requested_stop() is not None:
                raise KeyboardInterrupt
            begun = True
            with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                return chosen(*args, **kwargs)
        except (TorchDynamoException, InductorError, KeyboardInterrupt) as error:
            # Ctrl-C reaches the compiler's own processes too, and what goes on later must be compiled as well.
            stop = requested_stop()
            if stop is not None:
                message = f"stopped by {stop.name} during torch.compile; the same command goes on"
                raise StoppedError(message, stop) from None
            if isinstance(error, KeyboardInterrupt):
                raise
            # A mistake of the function itself comes up again here, as what it is.
            result = function(*args, **kwargs)
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            print(f"leanresnet: torch.compile failed ({reason[:200]}); training goes on without it", file=sys.stderr)
            chosen = function
            return result

    return call
