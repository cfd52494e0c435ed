"""Options that several commands share. Heavy imports stay inside commands: --help must answer at once."""

from pathlib import Path

import click

params_option = click.option(
    "--params", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True, help="The params file."
)
device_option = click.option(
    "--device", envvar="LEANRESNET_DEVICE", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)


def path_option(name: str, what: str) -> "click.decorators.FC":  # type: ignore[name-defined]
    """A required path."""
    return click.option(name, type=click.Path(path_type=Path), required=True, help=what)
