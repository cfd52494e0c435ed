"""Command champion: the best model within its budget is registered in MLflow."""

import click


@click.command()
def champion() -> None:
    """Register the best model within its budget, by validation, as leanresnet-<data set>@champion.

    All finished runs are compared, except for models without a budget, such as a teacher.
    """
    from leanresnet.analysis.champion import register_champion
    from leanresnet.files import workspace

    for line in register_champion(workspace()):
        click.echo(line)
