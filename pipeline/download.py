"""Stage download: the data set is downloaded and verified."""

from pathlib import Path

import click

from pipeline.dataset import local_copy
from pipeline.options import FilePath, params_option, path_option


@click.command()
@params_option
@path_option("--out", "Folder for the data set.")
@click.option(
    "--archive",
    type=FilePath(),
    help="A local copy to use instead of a download: an archive, a folder of its batches, or your folder of images."
    "  [env var: LEANRESNET_CIFAR10, LEANRESNET_CIFAR100, LEANRESNET_FOLDER]",
)
def download(params: Path, out: Path, archive: Path | None) -> None:
    """Download the data set and verify it."""
    from leanresnet.config.load import load_params
    from leanresnet.data.sources import fetch_source

    settings = load_params(params).download
    fetch_source(settings, out, archive or local_copy(settings.dataset))
