"""Command ensemble: several models are joined to one ensemble, which can be a teacher."""

from pathlib import Path

import click

from pipeline.options import FilePath, default_in_workspace


@click.command()
@click.argument("models", nargs=-1, required=True, type=FilePath())
@click.option(
    "--out",
    type=FilePath(),
    default=Path("models/external"),
    show_default=True,
    callback=default_in_workspace,
    help="Folder of the ensemble; distill.teacher = external uses models/external.",
)
def ensemble(models: tuple[Path, ...], out: Path) -> None:
    """Join MODELS to an ensemble that averages their logits.

    MODELS are folders of models that were trained on the same data.
    """
    from leanresnet.models.checkpoint import load_model, save_ensemble

    members = [load_model(folder) for folder in models]
    save_ensemble(members, out)
    parameters = sum(member.parameters for member in members)
    click.echo(f"{out}: {len(members)} members, {parameters:,} parameters")
