"""Command sync: events of runs that MLflow has not received yet are sent."""

from pathlib import Path

import click

from pipeline.options import FilePath


@click.command()
@click.argument("folder", type=FilePath(exists=True, file_okay=False), required=False)
def sync(folder: Path | None) -> None:
    """Send to MLflow what runs reported while it was away.

    Models that DVC restored from its cache are logged too.
    FOLDER is this workspace by default. To log the runs of another machine, copy its .work/journals to
    FOLDER/.work/journals; FOLDER is only read.
    """
    from leanresnet.analysis.backfill import log_restored
    from leanresnet.errors import StorageError
    from leanresnet.files import workspace
    from leanresnet.tracking.delivery import sync as send_journals

    root = folder or workspace()
    if folder and not (folder / ".work" / "journals").is_dir():
        raise click.UsageError(f"{folder}: no journals, expected: a folder with .work/journals in it")
    arrived, left = send_journals(root)
    click.echo(f"{arrived} logged, {left} left")
    # If no journal arrives, MLflow is likely to be away.
    is_away = left > 0 and not arrived
    restored = log_restored(root) if root.resolve() == workspace() and not is_away else 0
    if restored:
        click.echo(f"{restored} restored by DVC, logged from their outputs")
    if left:
        raise StorageError(
            f"{left} of {arrived + left} could not be logged, expected: a server that answers, and undamaged journals"
        )
