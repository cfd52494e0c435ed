"""A wrapper of torch.compile that falls back to eager execution and is safe to interrupt by a signal."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import ParamSpec, TypeVar

import torch

from leanresnet.signals import compilation

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` with `torch.compile`, one graph per combination of argument shapes.

    If the compilation fails, a warning is printed and `function` runs uncompiled from then on. The backward graph is
    compiled together with the forward graph, so that its failure is handled here as well.

    A signal that arrives during a compilation ends the process, see `signals.compilation`.

    Raises:
        StoppedError: when called, if a signal arrived before a compilation starts.
    """
    # The compiler takes a second to import.
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

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
                # If the error is the function's own, this call raises it again, without the compiler's wrapping.
                result = function(*args, **kwargs)
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                message = f"torch.compile failed ({reason[:200]}); training continues without it"
                print(f"leanresnet: {message}", file=sys.stderr)
                chosen = function
        if shapes not in known:
            known.append(shapes)
        return result

    return call
