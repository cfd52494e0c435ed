"""The best model within its budget, in MLflow's registry."""

import click


@click.command()
def champion() -> None:
    """Register the best model within its budget, by validation, as leanresnet-<data set>@champion.

    Of all finished runs; one without a budget, a teacher, is never registered.
    """
    from leanresnet.analysis.champion import register_champion
    from leanresnet.files import workspace

    for line in register_champion(workspace()):
        click.echo(line)
