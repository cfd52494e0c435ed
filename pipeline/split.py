"""Stage split: the data set is divided into training, validation and test split, one file each."""

from pathlib import Path

import click

from pipeline.options import params_option, path_option


@click.command()
@params_option
@path_option("--source", "Folder that download wrote.")
@path_option("--out", "Folder for train, validation and test.")
@path_option("--report", "Folder for the counts and the picture.")
def split(params: Path, source: Path, out: Path, report: Path) -> None:
    """Divide the data set into training, validation and test split.

    Each split has the same proportions of classes.
    """
    from leanresnet.config.load import load_params
    from leanresnet.data.division import divide

    divide(load_params(params).split, source, out, report)
