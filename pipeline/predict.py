"""Command predict: the predictions of a trained model for images."""

import json
from pathlib import Path

import click

from leanresnet.errors import LeanResNetError, redacted
from pipeline.options import FilePath, device_option, model_option


@click.command()
@click.argument("images", nargs=-1, required=True, type=FilePath())
@model_option
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Number of classes per image.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@device_option
def predict(images: tuple[Path, ...], model: Path, top: int, form: str, device: str) -> None:
    """Print the most likely classes of images.

    IMAGES are JPEG or PNG files of any size, or folders of them. The network's input is the central square of an
    image, scaled to 32x32 pixels; transparent pixels are white. Files that are not images are reported as errors at
    the end; the other files are predicted.
    """
    from leanresnet.analysis.tables import aligned
    from leanresnet.compute.device import choose_device, exact_float32
    from leanresnet.models.checkpoint import load_model
    from leanresnet.serving.inference import classify, find_images

    paths = find_images(images)
    loaded = load_model(model, choose_device(device))
    with exact_float32():
        results = [(click.format_filename(path), result) for path, result in classify(loaded, paths)]
    found = [(file, dict(list(result.items())[:top])) for file, result in results if isinstance(result, dict)]
    if form == "json":
        records = [{"file": file, "classes": classes} for file, classes in found]
        click.echo(json.dumps(records, indent=2, allow_nan=False))
    else:
        rows = [[file, *(f"{share:7.2%} {name}" for name, share in classes.items())] for file, classes in found]
        click.echo(aligned(rows, ()), nl=bool(rows))
    refused = [result for _, result in results if isinstance(result, LeanResNetError)]
    for error in refused[:-1]:
        click.echo(f"error: {redacted(error)}", err=True)
    if refused:
        # The program prints the last error in the same way, and exits with its code.
        raise refused[-1]
