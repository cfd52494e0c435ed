"""Where a model comes from."""

import click


@click.command()
@click.argument("target", metavar="RUN|MODEL")
def lineage(target: str) -> None:
    """Print what a model was made of, and the commands that make it again.

    RUN|MODEL: an MLflow run's id, a folder with a model, or a weights file, wherever it was copied to.
    """
    from leanresnet.analysis.lineage import lineage as trace
    from leanresnet.files import workspace

    click.echo(trace(target, workspace()))
