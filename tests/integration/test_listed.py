"""Code that DVC would record though it never ran."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import copy_checkout, preset_text
from imports import ROOT

from leanresnet.errors import ConfigError
from pipeline.cli import cli, run
from pipeline.listed import check_link, check_listed

LOSSES = "src/leanresnet/training/losses.py"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another clone, whose training DVC starts with this one's environment."""
    folder = copy_checkout(tmp_path / "a clone")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.setenv("DVC_STAGE", "train@baseline")
    return folder


def edit(file: Path) -> None:
    file.write_text(file.read_text() + "# edited\n")


def test_the_same_code_may_lie_elsewhere(clone: Path) -> None:
    check_listed()
    edit(clone / "src/leanresnet/analysis/champion.py")
    check_listed()


@pytest.mark.parametrize("file", [LOSSES, "src/leanresnet/files.py"])
def test_other_code_than_that_which_is_listed_is_refused(
    file: str, clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(clone / file)
    repair = f"`python -m pip install --no-deps --no-build-isolation --editable '{clone}'`"
    with pytest.raises(ConfigError) as refused:
        check_listed()
    message = f"{file}: differs from the code that runs, {ROOT / file}; {repair} installs this code instead"
    assert str(refused.value) == message
    monkeypatch.setattr(sys, "argv", ["leanresnet", "train", "baseline"])
    assert run() == ConfigError.exit_code
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_module_that_does_not_run_is_refused(clone: Path) -> None:
    (clone / "src/leanresnet/training/newer.py").touch()
    with pytest.raises(ConfigError, match=r"newer\.py: differs from the code that runs"):
        check_listed()


def test_a_workspace_elsewhere_lists_its_checkout(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = tmp_path / "space"
    space.mkdir()
    monkeypatch.chdir(space)
    monkeypatch.setenv("DVC_ROOT", str(space))
    shutil.copy(ROOT / "dvc.yaml", space)
    (space / "src").mkdir()
    for checkout in (ROOT, clone):
        (space / "src/leanresnet").unlink(missing_ok=True)
        (space / "src/leanresnet").symlink_to(checkout / "src/leanresnet")
        check_listed()
    edit(clone / LOSSES)
    with pytest.raises(ConfigError, match=f"{LOSSES}: differs from the code that runs.*--editable '{clone}'`"):
        check_listed()


def test_a_workspace_of_an_installed_package_is_linked_to_the_code_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = shutil.copytree(ROOT / "src/leanresnet", tmp_path / "site-packages" / "leanresnet")
    space = tmp_path / "a space"
    (space / "src").mkdir(parents=True)
    (space / "src/leanresnet").symlink_to(package)
    shutil.copy(ROOT / "dvc.yaml", space)
    monkeypatch.chdir(space)
    monkeypatch.setenv("DVC_ROOT", str(space))
    monkeypatch.setenv("DVC_STAGE", "train@baseline")
    check_listed()
    edit(space / LOSSES)
    with pytest.raises(ConfigError) as refused:
        check_listed()
    repair = str(refused.value).split("`")[1]
    assert repair == f"ln -sfn {ROOT / 'src/leanresnet'} '{space / 'src/leanresnet'}'"
    subprocess.run(shlex.split(repair), check=True)
    check_listed()


def test_an_experiment_runs_the_code_that_it_was_queued_with(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(ROOT))
    check_listed()
    edit(clone / LOSSES)
    with pytest.raises(ConfigError, match=f"{LOSSES}: {ROOT / LOSSES} was edited since the experiment was queued"):
        check_listed()


def test_what_dvc_does_not_record_may_be_any_code(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(clone / "src")
    monkeypatch.delenv("DVC_STAGE")
    check_listed()


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace without the code."""
    folder = tmp_path / "a space"
    folder.mkdir()
    (folder / "params.yaml").write_text(preset_text("demo"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    monkeypatch.chdir(folder)
    return folder


def link_away(space: Path) -> str:
    (space / "src").mkdir()
    (space / "src/leanresnet").symlink_to(space / "another machine")
    return f"a link to {space / 'another machine'}, which is not on this machine"


def copy_in_part(space: Path) -> str:
    shutil.copytree(ROOT / "src/leanresnet", space / "src/leanresnet")
    (space / "src/leanresnet/text.py").unlink()
    return "not the code that runs, of which text.py differs or is missing"


def link_to_nothing(space: Path) -> str:
    (space / "src").mkdir()
    (space / "empty").mkdir()
    (space / "src/leanresnet").symlink_to(space / "empty")
    return "not the code"


def text_for_a_link(space: Path) -> str:
    """As git writes it where a file system has no links."""
    (space / "src").mkdir()
    (space / "src/leanresnet").write_text("/another machine")
    return "not the code"


def file_for_src(space: Path) -> str:
    (space / "src").touch()
    return "missing"


def src_away(space: Path) -> str:
    (space / "src").symlink_to(space / "away")
    return "missing"


def own_project(space: Path) -> str:
    """A workspace is no checkout because it is a project of its user."""
    (space / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
    return copy_in_part(space)


LOSSES_OF_THE_LINK = [
    *(link_away, link_to_nothing, text_for_a_link, copy_in_part),
    *(file_for_src, src_away, own_project, lambda space: "missing"),
]


@pytest.mark.parametrize("lose", LOSSES_OF_THE_LINK)
def test_check_says_how_a_lost_link_is_renewed(lose: Callable[[Path], str], space: Path) -> None:
    """As in a clone of a workspace, and where git has replaced the link by the files behind it."""
    wrong = lose(space)
    refused = str(CliRunner().invoke(cli, ["check"]).exception)
    assert refused.startswith(f"src/leanresnet: {wrong}, expected: a link to the code, after `")
    subprocess.run(["sh", "-c", refused.split("`")[1]], check=True)
    assert Path("src/leanresnet").readlink() == ROOT / "src/leanresnet"
    check_link(Path())


def test_a_copy_of_the_code_that_runs_is_no_error(space: Path) -> None:
    shutil.copytree(ROOT / "src/leanresnet", space / "src/leanresnet")
    check_link(Path())


def test_a_stage_of_a_copy_says_how_it_is_replaced(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_in_part(space)
    monkeypatch.setenv("DVC_ROOT", str(space))
    monkeypatch.setenv("DVC_STAGE", "evaluate@baseline")
    edit(space / "src/leanresnet/files.py")
    with pytest.raises(ConfigError) as refused:
        check_listed()
    subprocess.run(["sh", "-c", str(refused.value).split("`")[1]], check=True)
    assert Path("src/leanresnet").readlink() == ROOT / "src/leanresnet"


def test_a_checkout_has_its_code_from_git(clone: Path) -> None:
    shutil.rmtree(clone / "src/leanresnet")
    with pytest.raises(ConfigError, match=r"leanresnet: missing, .* after `git checkout HEAD -- src/leanresnet`"):
        check_link(Path())
