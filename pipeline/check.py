"""Command check: the validation of params.yaml, the sizes of its models, and the stages that would run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.dataset import size_of_data
from pipeline.listed import check_link
from pipeline.options import FilePath, Name, device_option, in_workspace, preset_names
from pipeline.workspace import dvc, reason, released

if TYPE_CHECKING:
    from leanresnet.config.schema import Params


@click.command()
@click.option("--params", type=FilePath(), help="File with the params.  [default: params.yaml]")
@click.option("--preset", type=Name(preset_names), help="Check a preset instead of a file.")
@click.option("--layers", is_flag=True, help="Print the sizes of all layers.")
@click.option("--estimate", is_flag=True, help="Estimate the training time on this device from a few steps.")
@device_option
def check(params: Path | None, preset: str | None, layers: bool, estimate: bool, device: str) -> None:
    """Validate the params, and print which stages would run.

    The parameters of the models are counted too, and each stage that `dvc repro` would run has its reason.
    """
    from leanresnet.config.load import load_params
    from leanresnet.models.complexity import breakdown, check_budget, count_macs, count_parameters
    from leanresnet.scaffold.presets import RECIPES, load_preset

    if preset and params:
        raise click.UsageError("--preset names the values to check, expected: no --params with it")
    presets = released("presets")
    path = presets / f"{preset}.yaml" if preset else params or in_workspace(Path("params.yaml"))
    config = load_preset(preset, presets).params if preset else load_params(path)
    classes, training_images = size_of_data(path, config, at_hand=not preset)
    _check_images(path, config, training_images, classes)
    for name, recipe in config.recipes().items():
        count, macs = count_parameters(recipe.model, classes), count_macs(recipe.model, classes)
        check_budget(f"{path}: {RECIPES[name]}", recipe.model, recipe.max_parameters, classes)
        share = (
            f"{count / recipe.max_parameters:.1%} of the budget of {recipe.max_parameters:,}"
            if recipe.max_parameters
            else "exempt from the budget"
        )
        click.echo(f"{name:9} {count:>12,} parameters  {macs / 1e6:>8,.1f} million MACs  {share}")
        if recipe.selection.keep < 1:
            proxy = recipe.selection.proxy(recipe.model)
            count, macs = count_parameters(proxy, classes), count_macs(proxy, classes)
            sizes = f"{count:,} parameters, {macs / 1e6:,.1f} million MACs"
            click.echo(f"{'':9} learns from {recipe.selection.keep:.0%} of each batch, chosen by a proxy: {sizes}")
        if layers:
            for layer in breakdown(recipe.model, classes):
                click.echo(f"    {layer.name:24} {layer.parameters:>10,} {layer.macs / 1e6:>10,.2f}")
    if not preset and not params and path.with_name("dvc.yaml").exists():
        check_link(path.parent)
        _echo_stale(path.parent)
    if estimate:
        _echo_estimate(config, training_images, classes, device)
    click.echo(f"{path}: valid")


def _check_images(path: Path, config: "Params", images: int | None, classes: int) -> None:
    """Check that the splits and a batch of each model have enough images, if their number is known.

    Raises:
        ConfigError: if they have not.
    """
    from leanresnet.errors import ConfigError
    from leanresnet.scaffold.presets import RECIPES

    if images is None:
        return
    try:
        training = config.split.training_images(images, classes)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    for name, recipe in config.recipes().items():
        if recipe.batch_size > training:
            expected = f"2 to {training}, the training images"
            raise ConfigError(f"{path}: {RECIPES[name]}.batch_size = {recipe.batch_size}: expected: {expected}")


def _echo_stale(folder: Path) -> None:
    """Print the stages that `dvc status` reports as changed, each with DVC's reasons."""
    done = dvc("status", "--json", folder=folder)
    if done.returncode:
        click.echo(f"stages: not known, because dvc status failed ({reason(done)})")
        return
    from leanresnet.analysis.dvc_lock import read_lock
    from leanresnet.text import plain

    stale = json.loads(done.stdout)
    click.echo("stages to run: " + (plain(", ".join(stale)) if stale else "none, all are up to date"))
    known = read_lock(folder)
    if not known:
        click.echo("    no stage has run yet")
        return
    if stale:
        click.echo("    and the stages that depend on them, if their outputs change")
    for stage, changes in stale.items():
        if stage not in known:
            click.echo(plain(f"    {stage}: has not run yet"))
            continue
        for change in changes:
            for kind, entries in change.items() if isinstance(change, dict) else [(change, {})]:
                click.echo(plain(f"    {stage}: {kind}{': ' + _compact(entries) if entries else ''}"))


def _compact(entries: object) -> str:
    """Return `{"params.yaml": {"distill.alpha": "modified"}}` as `params.yaml distill.alpha modified`."""
    if isinstance(entries, dict):
        parts = [f"{key} {_compact(value)}" for key, value in entries.items()]
        return "; ".join(parts[:4]) + (f"; and {len(parts) - 4} more" if len(parts) > 4 else "")
    return str(entries)


def _echo_estimate(config: "Params", training_images: int | None, classes: int, device: str) -> None:
    """Print the estimated training time of each model and of all models together."""
    from leanresnet.analysis.estimate import seconds_per_inference, training_seconds
    from leanresnet.compute.device import choose_device, describe
    from leanresnet.errors import ConfigError

    if training_images is None:
        raise ConfigError("--estimate: the number of images is not known, expected: images that are at hand")
    chosen = choose_device(device)
    images = config.split.training_images(training_images, classes)
    total = 0.0
    for name, recipe in config.recipes().items():
        start, epoch = training_seconds(recipe, images, classes, chosen)
        if name == "student":
            # The size of an external model is not known here, so it is assumed to be that of this student.
            teacher = config.recipes().get(config.distill.teacher, recipe)
            epoch += seconds_per_inference(teacher, images, classes, chosen)
        whole = start + epoch * recipe.epochs
        total += whole
        compiled = f", including {_duration(start)} of compilation" if recipe.compile else ""
        click.echo(f"{name:9} {epoch:>8,.1f} s an epoch, {_duration(whole):>8} for {recipe.epochs} epochs{compiled}")
    click.echo(f"together  {_duration(total)} on {describe(chosen)}, within a factor of about 1.5")


def _duration(seconds: float) -> str:
    """Return a duration in the unit that suits it: `48 s`, `12.5 min` or `22.1 h`."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"
