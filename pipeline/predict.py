"""What a trained model sees in images."""

import json
from pathlib import Path

import click

from pipeline.options import device_option, model_option


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_option
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Classes an image, the likeliest.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@device_option
def predict(images: tuple[Path, ...], model: Path, top: int, form: str, device: str) -> None:
    """Print the likeliest classes of IMAGES: JPEG or PNG files of any size, or folders of them.

    Of each, the network sees the middle square, scaled to 32x32 pixels.
    """
    from leanresnet.checkpoint import load_model
    from leanresnet.device import choose_device, exact_float32
    from leanresnet.inference import classify, find_images

    paths = find_images(images)
    loaded = load_model(model, choose_device(device))
    with exact_float32():
        found = [(path, dict(list(said.items())[:top])) for path, said in classify(loaded, paths)]
    if form == "json":
        click.echo(json.dumps([{"file": str(path), "classes": said} for path, said in found], indent=2))
        return
    width = max(len(str(path)) for path, _ in found)
    for path, said in found:
        click.echo("  ".join([str(path).ljust(width), *(f"{value:7.2%} {name:10}" for name, value in said.items())]))
