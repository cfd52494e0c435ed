"""A workspace of its own: params.yaml, dvc.yaml and .dvc in any folder."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--preset", default="default", show_default=True, help="Params to start with: a file of presets/.")
def init(folder: Path, preset: str) -> None:
    """Make FOLDER a workspace in which `dvc repro` runs."""
    from leanresnet.errors import ConfigError, StorageError
    from leanresnet.files import save_text
    from pipeline.workspace import CHECKOUT, dvc, preset_path, reason

    params = preset_path(preset).read_text(encoding="utf-8")
    for name in ("params.yaml", "dvc.yaml", ".dvc"):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name}: exists already, accepted: a folder without it")
    stages = (CHECKOUT / "dvc.yaml").read_text(encoding="utf-8")
    # The stages depend on the code, which stays where it is.
    for part in ("src/leanresnet", "pipeline"):
        stages = stages.replace(f": {part}\n", f": {CHECKOUT / part}\n", 1)
    save_text(params, folder / "params.yaml")
    if not (folder / ".gitignore").exists():
        save_text((CHECKOUT / ".gitignore").read_text(encoding="utf-8"), folder / ".gitignore")
    done = dvc("init", "--no-scm", folder=folder)
    if done.returncode:
        raise StorageError(f"{folder}: dvc init failed ({reason(done)})")
    # The checkout's own, which may name a team's remote.
    config = (CHECKOUT / ".dvc" / "config").read_text(encoding="utf-8")
    save_text(config.replace("[core]\n", "[core]\n    no_scm = true\n", 1), folder / ".dvc" / "config")
    # Last, so that a workspace with dvc.yaml is a whole one.
    save_text(stages, folder / "dvc.yaml")
    click.echo(f"{folder}: ready; run `dvc repro` there")
