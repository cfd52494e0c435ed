"""Command init: a new workspace, a folder with params.yaml, dvc.yaml and .dvc."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import FilePath, Name, preset_names

if TYPE_CHECKING:
    from leanresnet.scaffold.presets import Preset

# The parts of a workspace in the order in which they are created, so a workspace with dvc.yaml is complete.
PARTS = (".gitignore", ".dvcignore", ".dvc", "src/leanresnet", "params.schema.json", "params.yaml", "dvc.yaml")
# A folder that is a repository already has its own; what they leave out is left out there too.
IGNORES = (".gitignore", ".dvcignore")

# An experiment of DVC adds the files of a stage's dependencies to git, and those behind the link to the code would
# replace it. The pattern matches folders alone, so the link itself is tracked.
CODE = "/src/leanresnet/\n"

# The content of .dvc/.gitignore. DVC writes it only if the folder is a git repository when `dvc init` runs.
UNTRACKED = "/config.local\n/tmp\n/cache\n"


@click.command()
@click.argument("folder", type=FilePath(file_okay=False))
@click.option("--preset", type=Name(preset_names), default="default", show_default=True, help="The initial values.")
def init(folder: Path, preset: str) -> None:
    """Create a workspace in FOLDER, for `dvc repro`."""
    from leanresnet.errors import ConfigError
    from leanresnet.files import not_written
    from leanresnet.scaffold.presets import load_preset
    from leanresnet.text import plain
    from pipeline.workspace import released

    loaded = load_preset(preset, released("presets"))
    for name in ("params.yaml", "dvc.yaml", ".dvc", "src/leanresnet"):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name}: exists already, expected: a folder without it")
    if wrong := _unusable(folder.resolve()):
        raise ConfigError(f"{folder.resolve()}: {wrong}, expected: another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The parts are made in a temporary folder and then moved, so a failed init leaves none of them behind.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".init-") as made:
            _make(Path(made), loaded)
            for name in PARTS:
                if name in IGNORES and (folder / name).exists():
                    _add_lines(folder / name, Path(made, name).read_bytes())
                elif not (folder / name).exists():
                    (folder / name).parent.mkdir(exist_ok=True)
                    Path(made, name).rename(folder / name)
    except OSError as error:
        raise not_written(error.filename or folder, error) from error
    click.echo(f"{plain(folder)}: ready; run `dvc repro` there")


def _unusable(folder: Path) -> str | None:
    """Return why DVC or MLflow would not work in a folder, or None."""
    path = str(folder)
    if {"{", "}"} & set(path):
        return "DVC runs no stage where a path has { or }"
    # MLflow writes its own path into a command of SQL.
    if {"'", '"'} <= set(path) or any(name.startswith(":") for name in folder.parts):
        return "MLflow makes no database where a path has both ' and \", or a name that begins with a colon"
    if any("\udc80" <= letter <= "\udcff" for letter in path):
        return "DVC and MLflow need paths in UTF-8"
    return None


def _add_lines(path: Path, content: bytes) -> None:
    """Append the lines of `content` that a file lacks."""
    from leanresnet.files import save_bytes

    lines = path.read_bytes().splitlines()
    missing = [line for line in content.splitlines() if line not in lines]
    if missing:
        save_bytes(b"\n".join([*lines, *missing, b""]), path)


def _make(folder: Path, preset: "Preset") -> None:
    import leanresnet
    from leanresnet.errors import StorageError
    from leanresnet.files import save_text
    from leanresnet.scaffold.reference import SCHEMA_FILE, json_schema, render
    from pipeline.workspace import dvc, reason, released

    done = dvc("init", "--no-scm", folder=folder)
    if done.returncode:
        raise StorageError(f"{folder.parent}: dvc init failed ({reason(done)})")
    # The checkout's own configuration is copied, because it may name a team's remote.
    config = released(".dvc/config").read_text(encoding="utf-8")
    save_text(config.replace("[core]\n", "[core]\n    no_scm = true\n", 1), folder / ".dvc" / "config")
    save_text(UNTRACKED, folder / ".dvc" / ".gitignore")
    save_text(released(".dvc/plots.html").read_text(encoding="utf-8"), folder / ".dvc" / "plots.html")
    save_text(released(".gitignore").read_text(encoding="utf-8") + CODE, folder / ".gitignore")
    save_text(released(".dvcignore").read_text(encoding="utf-8"), folder / ".dvcignore")
    # The stages depend on the code. A link to it is needed because DVC applies .dvcignore to files behind a link in the
    # workspace, but not to paths outside of the workspace.
    (folder / "src").mkdir()
    (folder / "src" / "leanresnet").symlink_to(Path(leanresnet.__file__).resolve().parent)
    save_text(json_schema(), folder / SCHEMA_FILE)
    save_text(render(preset.params, preset.title), folder / "params.yaml")
    save_text(released("dvc.yaml").read_text(encoding="utf-8"), folder / "dvc.yaml")
