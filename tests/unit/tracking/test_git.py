"""The commit of the code: of its own repository, wherever it lies and whatever the environment names."""

import shutil
from pathlib import Path

import pytest
from conftest import shell_in

from leanresnet.analysis.dvc_lock import find_locked
from leanresnet.errors import StorageError
from leanresnet.tracking import source
from leanresnet.tracking.git import git

AS_SOMEBODY = ("git", "-c", "user.name=tests", "-c", "user.email=tests@example.org")


def repository(folder: Path) -> Path:
    """With a project in it, as a subfolder, and code of its own."""
    for file in ("project/src/leanresnet/tracking.py", "project/params.yaml", "src/other.py"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    (folder / "project" / "dvc.lock").write_text("schema: '2.0'\nstages: {train: {outs: [{path: model, md5: 0a1b}]}}")
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    shell = shell_in(folder)
    shell("git", "init", "--quiet")
    shell("git", "add", "--all")
    shell(*AS_SOMEBODY, "commit", "--quiet", "--allow-empty", "--message", str(folder))


def head(folder: Path) -> str:
    return shell_in(folder)("git", "rev-parse", "HEAD").stdout.strip()


def version(code: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setattr(source, "CODE", code)
    tags = source.source_tags()
    return tags["git.commit"], tags["git.dirty"]


def test_in_a_subfolder_the_projects_own_files_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = repository(tmp_path)
    assert version(outer / "project", monkeypatch) == (head(outer), "false")
    (outer / "src" / "other.py").write_text("edited")
    assert version(outer / "project", monkeypatch) == (head(outer), "false")
    (outer / "project" / "src" / "leanresnet" / "tracking.py").write_text("edited")
    assert version(outer / "project", monkeypatch) == (head(outer), "true")


def test_an_archive_unpacked_in_a_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = repository(tmp_path)
    shutil.copytree(outer / "project", outer / "unpacked")
    assert version(outer / "unpacked", monkeypatch) == ("none", "none")
    assert version(outer / "src", monkeypatch) == ("none", "none")


def test_the_environment_names_no_other_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = repository(tmp_path / "ours"), repository(tmp_path / "other")
    for name, value in {"DIR": ".git", "WORK_TREE": "", "INDEX_FILE": ".git/index", "OBJECT_DIRECTORY": "none"}.items():
        monkeypatch.setenv(f"GIT_{name}", str(other / value))
    assert head(ours) != head(other)
    assert version(ours / "project", monkeypatch) == (head(ours), "false")
    found = find_locked("0a1b", ours / "project")
    assert found is not None
    assert found.commit == head(ours)


def test_somebody_elses_checkout_has_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outer, checkout, program = repository(tmp_path / "outer"), tmp_path / "checkout", tmp_path / "bin" / "git"
    shutil.copytree(outer / "project", checkout)
    commit(checkout)
    expected = head(checkout)
    # Git as it would be if each repository belonged to somebody else.
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexport GIT_TEST_ASSUME_DIFFERENT_OWNER=1\nexec {shutil.which("git")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert version(checkout, monkeypatch) == (expected, "false")
    assert capsys.readouterr().err == ""
    # What belongs to the code is trusted as the code is, and no more than that.
    assert version(outer / "project", monkeypatch) == ("unknown", "unknown")
    error = capsys.readouterr().err
    assert error.startswith(f"warning: the run's commit is not known: {outer / 'project'}: git refuses to read")
    assert error.count("\n") == 1
    with pytest.raises(StorageError, match="of another user"):
        git(checkout, "rev-parse", "HEAD")
