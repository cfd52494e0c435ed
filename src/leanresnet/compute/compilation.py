"""torch.compile, where it works, and as long as no signal ends it."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError

from leanresnet.signals import compilation

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`torch.compile`, one graph for each shape; where that fails, one line says so and `function` runs as it is.

    The backward graph is compiled with the forward one, so that it fails here too or not at all.

    A signal that comes during a compilation ends the process: see `interruption.compilation`.

    Raises:
        StoppedError: by a signal that came before a compilation.
    """
    chosen: Callable[P, R] = torch.compile(function, dynamic=False, fullgraph=True)
    known: list[list[torch.Size]] = []

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal chosen
        if chosen is function:
            return function(*args, **kwargs)
        shapes = [argument.shape for argument in args if isinstance(argument, torch.Tensor)]
        with nullcontext() if shapes in known else compilation():
            try:
                with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                    result = chosen(*args, **kwargs)
            except (TorchDynamoException, InductorError) as error:
                # A mistake of the function itself comes up again here, as what it is.
                result = function(*args, **kwargs)
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                message = f"torch.compile failed ({reason[:200]}); training goes on without it"
                print(f"leanresnet: {message}", file=sys.stderr)
                chosen = function
        if shapes not in known:
            known.append(shapes)
        return result

    return call
