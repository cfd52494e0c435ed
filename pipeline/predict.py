"""What a trained model sees in images."""

import json
from pathlib import Path

import click

from leanresnet.errors import LeanResNetError, redacted
from pipeline.options import device_option, model_option


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_option
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Classes an image, the likeliest.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@device_option
def predict(images: tuple[Path, ...], model: Path, top: int, form: str, device: str) -> None:
    """Print the likeliest classes of IMAGES: JPEG or PNG files of any size, or folders of them.

    Of each, the network sees the middle square, scaled to 32x32 pixels; what is transparent is white. A
    file that is no image is named, and the others are predicted all the same.
    """
    from leanresnet.compute.device import choose_device, exact_float32
    from leanresnet.models.checkpoint import load_model
    from leanresnet.serving.inference import classify, find_images
    from leanresnet.text import plain

    paths = find_images(images)
    loaded = load_model(model, choose_device(device))
    with exact_float32():
        answers = [(click.format_filename(path), said) for path, said in classify(loaded, paths)]
    found = [(file, dict(list(said.items())[:top])) for file, said in answers if isinstance(said, dict)]
    if form == "json":
        click.echo(json.dumps([{"file": file, "classes": said} for file, said in found], indent=2, allow_nan=False))
    else:
        width = max((len(plain(file)) for file, _ in found), default=0)
        for file, said in found:
            shares = (f"{value:7.2%} {plain(name):10}" for name, value in said.items())
            click.echo("  ".join([plain(file).ljust(width), *shares]))
    refused = [said for _, said in answers if isinstance(said, LeanResNetError)]
    for error in refused[:-1]:
        click.echo(f"error: {redacted(error)}", err=True)
    if refused:
        # The program prints it as it did the others, and ends with its code.
        raise refused[-1]
