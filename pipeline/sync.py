"""Runs that MLflow has not got yet."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
def sync(folder: Path | None) -> None:
    """Log to MLflow what runs reported while it was away, and models that DVC restored from its cache.

    FOLDER is this workspace unless told: copy .work/journals of a machine without MLflow into an
    empty folder, and its runs are logged here. Such a folder is read and stays as it is.
    """
    from leanresnet.analysis.backfill import log_restored
    from leanresnet.errors import StorageError
    from leanresnet.files import workspace
    from leanresnet.tracking.run import sync as hand_on

    root = folder or workspace()
    arrived, left = hand_on(root)
    click.echo(f"{arrived} logged, {left} left")
    if left:
        raise StorageError(
            f"{left} of {arrived + left} could not be logged, expected: a server that answers, and whole journals"
        )
    restored = log_restored(root) if root.resolve() == workspace() else 0
    if restored:
        click.echo(f"{restored} restored by DVC, logged from their outputs")
