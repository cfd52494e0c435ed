"""Command playground: a web page on which the models can be tried."""

from pathlib import Path

import click

from pipeline.options import FilePath, default_in_workspace, device_option, test_option
from pipeline.port import check_free, port_option


@click.command()
@port_option(8501)
@click.option(
    "--models",
    type=FilePath(),
    default=Path("models"),
    show_default=True,
    callback=default_in_workspace,
    help="Folder with any of baseline, teacher and student.",
)
@test_option
@device_option
def playground(port: int, models: Path, test: Path, device: str) -> None:
    """Serve a web page on 127.0.0.1 to try the models.

    It shows the predictions of each model for an uploaded image.
    """
    from leanresnet.compute.device import choose_device
    from leanresnet.errors import require
    from leanresnet.serving.inference import find_models

    require("serve", "streamlit")
    from leanresnet.serving.playground.server import serve

    choose_device(device)
    names = find_models(models)
    check_free(port)
    click.echo(f"{', '.join(names)}: http://127.0.0.1:{port}")
    serve(models, test, device, port)
