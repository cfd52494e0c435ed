"""Models side by side: a workspace's three, or those of its experiments."""

from pathlib import Path

import click


@click.command()
@click.option("--results", type=click.Path(path_type=Path), help="A folder with a folder of results a model.")
@click.option("--experiment", "experiments", multiple=True, help="DVC experiments of this name, or that begin with it.")
@click.option("--out", type=click.Path(path_type=Path), help="With experiments: write OUT.md and OUT.png too.")
def compare(results: Path | None, experiments: tuple[str, ...], out: Path | None) -> None:
    """Print the three evaluated models side by side, or the runs of experiments and in what they differ."""
    if (results is None) == (not experiments):
        raise click.UsageError("accepted: --results, or one --experiment or more")
    if results is not None:
        from leanresnet.summary import comparison

        click.echo(comparison(results))
    else:
        from leanresnet.comparison import compare_experiments

        click.echo(compare_experiments(experiments, out))
