"""Stage download: the data set is downloaded and verified."""

from pathlib import Path

import click

from pipeline.options import params_option, path_option


@click.command()
@params_option
@path_option("--out", "Folder for the data set.")
@click.option(
    "--archive",
    envvar="LEANRESNET_CIFAR10",
    type=click.Path(path_type=Path),
    help="A local CIFAR-10 archive, or a folder of its batches, to use instead of a download.",
)
@click.option(
    "--sha256",
    envvar="LEANRESNET_CIFAR10_SHA256",
    help="SHA-256 of the local copy, if it is not the official archive.",
)
def download(params: Path, out: Path, archive: Path | None, sha256: str | None) -> None:
    """Download the data set and verify it."""
    from leanresnet.config.load import load_params
    from leanresnet.data.sources import fetch_source

    fetch_source(load_params(params).download, out, archive, sha256)
