"""Command champion: the best model within its budget is registered in MLflow."""

import click


@click.command()
def champion() -> None:
    """Register the best model within its budget in MLflow.

    It is the one with the highest accuracy on the workspace's validation split of all finished runs, except for models
    without a budget, such as a teacher. Its name is leanresnet-<data set>@champion.
    """
    from leanresnet.analysis.champion import register_champion
    from leanresnet.files import workspace

    for line in register_champion(workspace()):
        click.echo(line)
