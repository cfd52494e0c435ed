"""Command export: a trained model is written in another format."""

from pathlib import Path

import click

from pipeline.options import FilePath, model_option


@click.command()
@model_option
@click.option("--format", "form", type=click.Choice(["onnx", "torchscript", "pt2"]), default="onnx", show_default=True)
@click.option("--out", type=FilePath(dir_okay=False), help="The file.  [default: model.onnx, .ts or .pt2]")
def export(model: Path, form: str, out: Path | None) -> None:
    """Export a model for other programs, and verify the export.

    Its logits must agree with the original's, or nothing is written. The exported model maps raw images (batch, 3, 32,
    32) of type uint8 to logits (batch, classes), for any batch size.
    """
    from leanresnet.models.checkpoint import load_model
    from leanresnet.serving.export import SUFFIXES
    from leanresnet.serving.export import export as write

    path = out or Path("model").with_suffix(SUFFIXES[form])
    done = write(load_model(model), form, path)  # type: ignore[arg-type]
    click.echo(f"{path}: logits within {done.difference:.1e} of the original's")
    click.echo(f"one image: {done.latency_ms:.2f} ms, in torch {done.torch_latency_ms:.2f} ms (medians, float32)")
