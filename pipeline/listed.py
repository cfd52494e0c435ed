"""The check that a stage runs the same code that DVC records for it."""

import os
import shlex
from pathlib import Path
from typing import Any

import leanresnet.errors

# The path of the package in dvc.yaml, and the path from which it was imported.
LISTED, IMPORTED = Path("src/leanresnet"), Path(leanresnet.errors.__file__).resolve().parent


def check_listed() -> None:
    """Check that the code which the current stage lists in dvc.yaml has the same content as the imported code.

    They differ if a checkout is used with the environment of another one, or if a queued experiment, which has a copy
    of the code, runs after the code was edited. Without DVC, nothing is checked.

    Raises:
        ConfigError: if a file differs; the message names it and the command that repairs the environment.
    """
    stage, stages = os.environ.get("DVC_STAGE", "").partition("@")[0], Path("dvc.yaml")
    if not stage or not stages.exists():
        return
    from leanresnet.config.documents import read_yaml

    content: Any = read_yaml(stages.read_text(encoding="utf-8"))
    for dep in map(Path, content["stages"].get(stage, {}).get("deps", [])):
        if dep.is_relative_to(LISTED):
            file = _different(LISTED, dep.relative_to(LISTED))
            if file:
                raise leanresnet.errors.ConfigError(f"{LISTED / file}: {_wrong(file)}")


def check_link(folder: Path) -> None:
    """Check that the code on which the stages of a workspace depend is there.

    `leanresnet init` links it to the installed package, which is elsewhere where a clone of the workspace is used. git
    may also have replaced the link by the files that an experiment added behind it.

    Raises:
        ConfigError: if the code is not there, or a copy of it is not complete; the message has the command that repairs
            it.
    """
    link = folder / LISTED
    if link.is_symlink() and not link.exists():
        wrong = f"a link to {link.readlink()}, which is not on this machine"
    elif not link.exists():
        wrong = "missing"
    elif not (link / "__init__.py").exists():
        wrong = "not the code"
    elif _is_copy(link) and (file := _different(link, Path())):
        wrong = f"not the code that runs, of which {file} differs or is missing"
    else:
        return
    raise leanresnet.errors.ConfigError(f"{link}: {wrong}, expected: a link to the code, after `{_relink(link)}`")


def _is_copy(package: Path) -> bool:
    """Whether a package is neither a link nor that of a checkout."""
    return not package.is_symlink() and not _is_checkout(package.parents[1])


def _is_checkout(folder: Path) -> bool:
    return (folder / "pipeline" / "listed.py").exists()


def _relink(link: Path) -> str:
    """Return the command that makes the link anew."""
    if _is_checkout(link.parents[1]):
        return f"git checkout HEAD -- {shlex.quote(str(link))}"
    commands = [["ln", "-sfn", str(IMPORTED), str(link)]]
    if link.is_dir() and not link.is_symlink():
        # `ln` would put the link into the folder.
        commands.insert(0, ["rm", "-r", str(link)])
    elif not link.parent.is_dir():
        commands.insert(0, ["mkdir", "-p", str(link.parent)])
        if link.parent.exists() or link.parent.is_symlink():
            commands.insert(0, ["rm", str(link.parent)])
    return " && ".join(map(shlex.join, commands))


def _different(package: Path, part: Path) -> Path | None:
    """Return the first module of a part of a package that differs from the imported one, or None."""
    files = _modules(package / part, package) | _modules(IMPORTED / part, IMPORTED)
    return next((file for file in sorted(files) if _differ(package / file, IMPORTED / file)), None)


def _modules(place: Path, package: Path) -> set[Path]:
    """Return the modules below the folder `place`, or `place` itself if it is a file, relative to the package."""
    found = place.rglob("*.py") if place.is_dir() else [place]
    return {file.relative_to(package) for file in found}


def _wrong(file: Path) -> str:
    from leanresnet.files import workspace

    package = workspace() / LISTED
    if (package / file).resolve() == IMPORTED / file:
        return f"{IMPORTED / file} was edited since the experiment was queued, expected: one that is queued now"
    checkout = package.resolve().parents[1]
    if not _is_checkout(checkout):
        # A link to an installed package, or a copy of it: linked anew, the stages run again with this code.
        repair, effect = _relink(package), "links to that code"
    else:
        repair = f"python -m pip install --no-deps --no-build-isolation --editable {shlex.quote(str(checkout))}"
        effect = "installs this code instead"
    return f"differs from the code that runs, {IMPORTED / file}; `{repair}` {effect}"


def _differ(listed: Path, imported: Path) -> bool:
    try:
        return listed.read_bytes() != imported.read_bytes()
    except OSError:
        return True
