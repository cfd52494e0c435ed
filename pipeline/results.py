"""Command results: a table of the evaluated models of a workspace."""

from pathlib import Path

import click

from pipeline.options import FilePath, default_in_workspace


@click.command()
@click.argument("folder", type=FilePath(), default=Path("results"), callback=default_in_workspace)
def results(folder: Path) -> None:
    """Print a table of the evaluated models.

    FOLDER is that of the results, by default the workspace's. MLflow is not needed.
    """
    from leanresnet.analysis.summary import summary

    click.echo(summary(folder))
