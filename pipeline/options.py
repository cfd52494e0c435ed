"""Options that several commands share. Heavy imports stay inside commands: --help must answer at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]

params_option = click.option(
    "--params", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True, help="The params file."
)
device_option = click.option(
    "--device", envvar="LEANRESNET_DEVICE", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)


def path_option(name: str, what: str) -> Callable[[Command], Command]:
    """A required path."""
    return click.option(name, type=click.Path(path_type=Path), required=True, help=what)
