"""Options that several commands share. Commands import slow modules in their functions, so that --help is fast."""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

Command = Callable[..., Any]
SNAPSHOT_SECONDS = 60.0


class FiniteRange(click.FloatRange):
    """A range of numbers without NaN, which is neither below nor above a bound, and without infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class FilePath(click.Path):
    """A path. It is not empty, as that of a shell's variable without a value, which would be the current folder."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True) -> None:
        # A file that cannot be read is an error of the system and not of the option.
        super().__init__(exists=exists, file_okay=file_okay, dir_okay=dir_okay, readable=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty.", param, ctx)
        return super().convert(value, param, ctx)


class Name(click.ParamType):  # type: ignore[type-arg]  # generic in new releases of click only
    """One of the names that `known` returns, which --help lists and a shell completes.

    Other names are passed on to the command, whose error says which one may have been meant.
    """

    name = "name"

    def __init__(self, known: Callable[[], Iterable[str]]) -> None:
        self._known = known

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self._known())}]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self._known() if name.startswith(incomplete)]


def preset_names() -> list[str]:
    from leanresnet.scaffold.presets import names
    from pipeline.workspace import released

    return names(released("presets"))


def in_workspace(path: Path) -> Path:
    """Return a path of the workspace relative to the current folder.

    Raises:
        ConfigError: if the current folder is in no workspace.
    """
    from leanresnet.files import project

    return Path(os.path.relpath(project() / path))


def beside_or_in_workspace(path: Path) -> Path:
    """Return a path of the workspace relative to the current folder, or `path` itself outside of a workspace."""
    from leanresnet.errors import ConfigError

    try:
        return in_workspace(path)
    except ConfigError:
        return path


def default_in_workspace(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    """Resolve an option's path: a default is relative to the workspace, a given path to the current folder."""
    return in_workspace(value) if _is_default(context, parameter) else value


def optional_in_workspace(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    """Resolve the path of a file that need not exist: as `default_in_workspace`, but there may be no workspace."""
    return beside_or_in_workspace(value) if _is_default(context, parameter) else value


def _is_default(context: click.Context, parameter: click.Parameter) -> bool:
    return context.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.DEFAULT


params_option = click.option(
    "--params",
    type=FilePath(),
    default=Path("params.yaml"),
    show_default=True,
    callback=default_in_workspace,
    help="File with the params.",
)
device_option = click.option(
    "--device",
    envvar="LEANRESNET_DEVICE",
    default="auto",
    show_default=True,
    help="Device to run on: auto, cpu, cuda or cuda:N.",
)
snapshot_option = click.option(
    "--snapshot-seconds",
    type=FiniteRange(0),
    envvar="LEANRESNET_SNAPSHOT_SECONDS",
    default=SNAPSHOT_SECONDS,
    show_default=True,
    help="Seconds between two snapshots of the training; 0 saves one after each step.",
)
extend_option = click.option(
    "--extend",
    is_flag=True,
    envvar="LEANRESNET_EXTEND",
    help="Resume from the finished training with the same values but fewer epochs.",
)
model_option = click.option(
    "--model",
    type=FilePath(),
    default=Path("models/student"),
    show_default=True,
    callback=default_in_workspace,
    help="Folder of the model.",
)

test_option = click.option(
    "--test",
    type=FilePath(),
    default=Path("data/test.safetensors"),
    show_default=True,
    callback=optional_in_workspace,
    help="The test split, whose images the page shows if the file exists.",
)


def path_option(name: str, what: str) -> Callable[[Command], Command]:
    """Return a required option with a path; `what` is its help."""
    return click.option(name, type=FilePath(), required=True, help=what)
