"""Command search: a list of architectures within the budget."""

from collections.abc import Callable
from pathlib import Path

import click

from pipeline.dataset import size_of_data
from pipeline.options import Command, FiniteRange, params_option


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic in new releases of click only
    """A list of numbers in the range `expected`, such as `1,2,4`, or `1-4` for all numbers from 1 to 4."""

    name = "numbers"

    def __init__(self, expected: range) -> None:
        self._expected = expected

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        found: list[int] = []
        for part in str(value).split(","):
            first, dash, last = part.partition("-")
            ends = (first, last if dash else first)
            are_numbers = all(end.isdecimal() and len(end) < 10 for end in ends)
            numbers = range(int(ends[0]), int(ends[1]) + 1) if are_numbers else ()
            # The last one is compared first, because a range may be too long for a set.
            if not numbers or numbers[-1] not in self._expected or not set(numbers) <= set(self._expected):
                kind, such = ("odd", "1,3") if self._expected.step == 2 else ("whole", "1,3 or 1-4")
                most = self._expected[-1]
                self.fail(f"{value!r}: expected: {kind} numbers from 1 to {most}, such as {such}", param, ctx)
            found += numbers
        return tuple(dict.fromkeys(found))


def numbers_option(name: str, expected: range, default: str, what: str) -> Callable[[Command], Command]:
    """Return an option that takes `Numbers`; `what` is its help."""
    return click.option(name, type=Numbers(expected), default=default, show_default=True, help=what)


@click.command()
@params_option
@click.option(
    "--budget", type=click.IntRange(1), help="Largest number of parameters.  [default: the baseline's budget]"
)
@click.option("--least", type=FiniteRange(0, 1), default=0.95, show_default=True, help="Smallest share of the budget.")
@click.option("--count", type=click.IntRange(1), default=12, show_default=True, help="Number of architectures.")
@numbers_option("--layers", range(1, 7), "3,4", "N, number of residual layers.")
@numbers_option("--blocks", range(1, 101), "1-4", "B, number of blocks of a layer.")
@numbers_option(
    "--channels",
    range(1, 4097),
    "16,32,64,96,128,192,256,384,512",
    "C, number of channels of a layer; it never decreases.",
)
@numbers_option("--kernels", range(1, 16, 2), "3,5", "F, kernel size of the convolutions.")
@numbers_option("--skip-kernels", range(1, 16, 2), "1,3", "K, kernel size of the shortcuts' convolutions.")
@click.option("--format", "layout", type=click.Choice(["table", "yaml"]), default="table", show_default=True)
def search(
    params: Path,
    budget: int | None,
    least: float,
    count: int,
    layers: tuple[int, ...],
    blocks: tuple[int, ...],
    channels: tuple[int, ...],
    kernels: tuple[int, ...],
    skip_kernels: tuple[int, ...],
    layout: str,
) -> None:
    """List architectures that use most of the budget.

    They are evenly spaced in the order of their MACs. `--format yaml` prints them as runs of a question, such as
    experiments/architectures.yaml.
    """
    import time

    from leanresnet.analysis.search import enumerate_models, near_budget, spread
    from leanresnet.config.load import load_params
    from leanresnet.errors import ConfigError

    values = load_params(params)
    recipe, (classes, _) = values.train.baseline, size_of_data(params, values)
    most = budget or recipe.max_parameters
    if most is None:
        raise ConfigError(f"{params}: train.baseline.max_parameters = null, expected: a number there, or --budget")
    begun = time.perf_counter()
    models = enumerate_models(recipe.model, layers, blocks, channels, kernels, skip_kernels)
    counted, found = near_budget(models, most, least, classes)
    seconds = time.perf_counter() - begun
    chosen = spread(found, count)
    if layout == "yaml":
        for each in chosen:
            shape = ", ".join(f"{key}: {value}" for key, value in each.shape.items())
            click.echo(f"  - name: {each.name}\n    recipe: {{model: {{{shape}}}}}")
        return
    for each in chosen:
        click.echo(f"{each.name:44} {each.parameters:>12,} parameters  {each.macs / 1e6:>8,.1f} million MACs")
    share = f"{len(found):,} with {100 * least:g} to 100 % of {most:,}"
    click.echo(f"{counted:,} architectures counted in {seconds:.1f} s; {share}")
