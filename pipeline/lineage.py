"""Command lineage: everything that a model was made from."""

import click


@click.command()
@click.argument("target", metavar="RUN|MODEL")
def lineage(target: str) -> None:
    """Print what a model was made from, and how to make it again.

    RUN|MODEL is the id of an MLflow run, the folder of a model, or a file of weights, which may be a copy.
    """
    from leanresnet.analysis.lineage import lineage as trace
    from leanresnet.files import workspace

    click.echo(trace(target, workspace()))
