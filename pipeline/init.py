"""A workspace of its own: params.yaml, dvc.yaml and .dvc in any folder."""

import json
import tempfile
from pathlib import Path

import click

# Of a workspace, in the order in which they appear: one with dvc.yaml is a whole one.
PARTS = (".gitignore", ".dvcignore", ".dvc", "params.yaml", "dvc.yaml")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--preset", default="default", show_default=True, help="Params to start with: a file of presets/.")
def init(folder: Path, preset: str) -> None:
    """Make FOLDER a workspace in which `dvc repro` runs."""
    from leanresnet.errors import ConfigError
    from leanresnet.files import not_written
    from pipeline.workspace import preset_path

    params = preset_path(preset)
    for name in ("params.yaml", "dvc.yaml", ".dvc"):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name}: exists already, accepted: a folder without it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Made beside their places, the parts of one that fails are not in the way of the next.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".init-") as made:
            _make(Path(made), params)
            for name in PARTS:
                if not (folder / name).exists():
                    Path(made, name).rename(folder / name)
    except OSError as error:
        raise not_written(error.filename or folder, error) from error
    click.echo(f"{folder}: ready; run `dvc repro` there")


def _make(folder: Path, params: Path) -> None:
    from leanresnet.errors import StorageError
    from leanresnet.files import save_text
    from pipeline.workspace import CHECKOUT, dvc, reason

    done = dvc("init", "--no-scm", folder=folder)
    if done.returncode:
        raise StorageError(f"{folder.parent}: dvc init failed ({reason(done)})")
    # The checkout's own, which may name a team's remote.
    config = (CHECKOUT / ".dvc" / "config").read_text(encoding="utf-8")
    save_text(config.replace("[core]\n", "[core]\n    no_scm = true\n", 1), folder / ".dvc" / "config")
    save_text((CHECKOUT / ".gitignore").read_text(encoding="utf-8"), folder / ".gitignore")
    save_text(params.read_text(encoding="utf-8"), folder / "params.yaml")
    stages = (CHECKOUT / "dvc.yaml").read_text(encoding="utf-8")
    # The stages depend on the code, which stays where it is.
    for part in ("src/leanresnet", "pipeline"):
        # In quotes, JSON's, for a path may hold what YAML reads otherwise.
        stages = stages.replace(f": {part}\n", f": {json.dumps(str(CHECKOUT / part), ensure_ascii=False)}\n", 1)
    save_text(stages, folder / "dvc.yaml")
