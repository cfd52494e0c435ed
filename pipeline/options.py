"""Options that several commands share. Heavy imports stay inside commands: --help must answer at once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]
SNAPSHOT_SECONDS = 60.0


def in_workspace(path: Path) -> Path:
    """A path of the workspace, as seen from the current folder, which may be one below it; itself outside of one."""
    from leanresnet.errors import ConfigError
    from leanresnet.files import project

    try:
        return Path(os.path.relpath(project() / path))
    except ConfigError:
        return path


def default_in_workspace(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    """A callback of options: what is given is of the current folder, and a default of the workspace."""
    is_default = context.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.DEFAULT
    return in_workspace(value) if is_default else value


params_option = click.option(
    "--params",
    type=click.Path(path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    callback=default_in_workspace,
    help="The params file.",
)
device_option = click.option(
    "--device", envvar="LEANRESNET_DEVICE", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
snapshot_option = click.option(
    "--snapshot-seconds",
    type=click.FloatRange(0),
    envvar="LEANRESNET_SNAPSHOT_SECONDS",
    default=SNAPSHOT_SECONDS,
    show_default=True,
    help="Between two saves of a training's state; 0: after each step.",
)
extend_option = click.option(
    "--extend",
    is_flag=True,
    envvar="LEANRESNET_EXTEND",
    help="Go on from the finished training of the same for fewer epochs.",
)
model_option = click.option(
    "--model",
    type=click.Path(path_type=Path),
    default=Path("models/student"),
    show_default=True,
    callback=default_in_workspace,
    help="Folder of the model.",
)


def path_option(name: str, what: str) -> Callable[[Command], Command]:
    """A required path."""
    return click.option(name, type=click.Path(path_type=Path), required=True, help=what)
