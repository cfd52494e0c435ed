"""Stage download: the data set is downloaded and verified."""

import os
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
@click.option(
    "--sha256",
    help="SHA-256 of the local copy, if it is not the official archive.  [env var: LEANRESNET_CIFAR10_SHA256]",
)
def download(params: Path, out: Path, archive: Path | None, sha256: str | None) -> None:
    """Download the data set and verify it."""
    from leanresnet.config.load import load_params
    from leanresnet.data.sources import fetch_source

    settings = load_params(params).download
    local = archive or local_copy(settings.dataset)
    if sha256 and local is None:
        raise click.UsageError("--sha256 is that of a local copy, expected: --archive with it")
    if settings.dataset == "cifar10":
        sha256 = sha256 or os.environ.get("LEANRESNET_CIFAR10_SHA256")
    fetch_source(settings, out, local, sha256 or None)
