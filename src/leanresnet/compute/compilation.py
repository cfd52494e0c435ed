"""A wrapper of torch.compile that falls back to eager execution and is safe to interrupt by a signal."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Generic, ParamSpec, TypeVar, cast

import torch

from leanresnet.errors import warn
from leanresnet.signals import compilation

P = ParamSpec("P")
R = TypeVar("R")
# So many characters of the line are shown that says why a compilation failed.
REASON_LENGTH = 300


class CompiledFunction(Generic[P, R]):
    """A function that is compiled with `torch.compile`, one graph per combination of argument shapes.

    If a compilation fails, a warning with the reason is printed, and `function` runs uncompiled from then on. The
    backward graph is compiled together with the forward graph, so that its failure is handled here as well.

    A signal that arrives during a compilation ends the process, see `signals.compilation`.

    Args:
        function: the function to compile.
        replay: whether a GPU replays the kernels of a call and of its backward pass as CUDA graphs, which is the mode
            reduce-overhead of `torch.compile`. It changes nothing on a CPU. `function` must return a tuple of tensors.

    Attributes:
        failure: why a compilation failed, or None. The function runs uncompiled after a failure.
    """

    def __init__(self, function: Callable[P, R], replay: bool = False) -> None:
        # The compiler takes a second to import.
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        self.failure: str | None = None
        # A cache that cannot be written, or whose code cannot be loaded, is an OSError or an ImportError.
        self._failures = (TorchDynamoException, InductorError, OSError, ImportError)
        self._function = function
        mode = "reduce-overhead" if replay else None
        compiled: Callable[P, R] = torch.compile(function, dynamic=False, fullgraph=True, mode=mode)
        self._compiled = _copied(compiled) if replay else compiled
        self._known: list[list[torch.Size]] = []

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function.

        Raises:
            StoppedError: if a signal arrived before a compilation starts.
        """
        if self.failure is not None:
            return self._function(*args, **kwargs)
        shapes = [argument.shape for argument in args if isinstance(argument, torch.Tensor)]
        with nullcontext() if shapes in self._known else compilation():
            try:
                with (
                    torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
                    torch._inductor.config.patch(deterministic=_has_to_be_deterministic()),
                ):
                    result = self._compiled(*args, **kwargs)
            except self._failures as error:
                # If the error is the function's own, this call raises it again, without the compiler's wrapping.
                result = self._function(*args, **kwargs)
                self.failure = _reason(error)
                warn(f"torch.compile failed ({self.failure}); training continues without it")
        if shapes not in self._known:
            self._known.append(shapes)
        return result


def _has_to_be_deterministic() -> bool:
    """Return whether the compiler may not choose by timings between kernels that sum in another order."""
    return torch.are_deterministic_algorithms_enabled() or bool(torch._inductor.config.deterministic)


def _copied(replayed: Callable[P, R]) -> Callable[P, R]:
    """Return a function that copies the results of CUDA graphs, whose memory the next call overwrites."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        torch.compiler.cudagraph_mark_step_begin()
        results = cast(tuple[torch.Tensor, ...], replayed(*args, **kwargs))
        return cast(R, tuple(result.clone() for result in results))

    return call


def _reason(error: Exception) -> str:
    """Return the line of a compiler's error that says what to mend."""
    text = str(error)
    unloadable = re.search(r"(\S+): failed to map segment", text)
    if unloadable:
        expected = "TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR name folders of another one"
        return f"{unloadable[1]}: its file system is mounted with noexec, expected: {expected}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("backend=")]
    # The line of the C++ compiler comes after the one that says that it failed.
    saying = [line for line in lines if " error: " in line] or lines or [type(error).__name__]
    return saying[0][:REASON_LENGTH]
