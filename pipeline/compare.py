"""The three models side by side."""

from pathlib import Path

import click

from pipeline.options import path_option


@click.command()
@path_option("--results", "Folder with a folder of results a model.")
def compare(results: Path) -> None:
    """Print the evaluated models side by side."""
    from leanresnet.summary import comparison

    click.echo(comparison(results))
