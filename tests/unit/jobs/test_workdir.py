"""The folder of a training: which one it is, who waits for it, and how long it is kept."""

import os
import signal
import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from leanresnet.errors import StoppedError, StorageError
from leanresnet.jobs import workdir
from leanresnet.jobs.workdir import FINISHED_KEPT, open_workdir
from leanresnet.tracking.journal import new_id

MADE_BY = {"params": {"epochs": 3}}
SECONDS = count()


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_folder_depends_on_the_values_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(provenance: dict[str, Any]) -> Path:
        with open_workdir(provenance) as held:
            return held.snapshots.folder

    assert folder(MADE_BY) == folder({"params": {"epochs": 3}})
    assert folder(MADE_BY) != folder({"params": {"epochs": 4}})
    before = folder(MADE_BY)
    monkeypatch.setattr(workdir, "_code_digest", lambda: "edited")
    assert folder(MADE_BY) != before


def test_a_stopped_training_of_other_code_is_named_once_and_not_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_workdir(MADE_BY) as held:
        held.snapshots.save({"step": 1})
    with open_workdir(MADE_BY) as again:
        assert again.snapshots.load() == {"step": 1}
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(workdir, "_code_digest", lambda: "edited")
    with open_workdir(MADE_BY) as other:
        assert other.snapshots.load() is None
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {held.snapshots.folder}: saved by other code than the current")
    assert error.count("\n") == 1
    with open_workdir({"params": {"epochs": 4}}):
        pass
    assert capsys.readouterr().err == ""


def test_of_a_folder_that_was_half_removed_nothing_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_workdir({"params": {"epochs": 2}}) as parent, open_workdir(MADE_BY) as held:
        held.extend(parent)
        held.keep_run_id(new_id())
        held.snapshots.save({"step": 1})
        held.finish("")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **options: None)
        held.discard()
    assert (held.snapshots.load(), held.extended_from, held.run_id, held.is_finished()) == (None, None, None, True)


@pytest.mark.parametrize("text", ["../../../victim", "", "x' or '1"])
def test_the_id_of_a_run_that_is_none_is_refused(text: str) -> None:
    with open_workdir(MADE_BY) as held:
        held.keep_run_id(text)
        with pytest.raises(StorageError, match=r"run_id: .*, expected: the id of a journal, such as"):
            _ = held.run_id


def test_another_process_that_trains_the_same_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workdir, "WAIT_SECONDS", 0.05)
    with open_workdir(MADE_BY) as held:
        folder = held.snapshots.folder
    lock = FileLock(f"{folder}.lock", thread_local=False)
    lock.acquire()
    looks = iter([None, None, signal.SIGTERM])
    with pytest.raises(StoppedError, match="SIGTERM") as caught, open_workdir(MADE_BY, lambda: next(looks)):
        pass
    assert caught.value.exit_code == 143
    assert capsys.readouterr().err == f"warning: {folder}.lock: another process trains the same model; waiting for it\n"
    released = threading.Event()
    threading.Timer(0.3, lambda: (released.set(), lock.release())).start()
    with open_workdir(MADE_BY):
        assert released.is_set()


def finish(epochs: int, **state: Any) -> Path:
    with open_workdir({"params": {"epochs": epochs}}) as held:
        held.snapshots.save(state)
        held.finish("0a1b")
    return aged(held.snapshots.folder)


def aged(folder: Path) -> Path:
    """Changed a second after the one before. Two changes may have the same time if the system's clock is coarse."""
    now = next(SECONDS)
    os.utime(folder, (now, now))
    return folder


def test_without_dvc_a_finished_training_is_not_gone_on_with() -> None:
    finish(3, number=1)
    with open_workdir(MADE_BY) as held:
        assert held.snapshots.load() is None


def test_under_dvc_it_is_until_the_outputs_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train@baseline")
    finish(3, number=1)
    with open_workdir(MADE_BY) as held:
        assert held.snapshots.load() == {"number": 1}
    Path("dvc.lock").write_text("outs:\n- path: models/baseline\n  md5: 0a1b\n")
    with open_workdir(MADE_BY) as held:
        assert held.snapshots.load() is None


def test_of_the_finished_the_newest_stay_and_of_the_stopped_all() -> None:
    with open_workdir({"params": {"epochs": 100}}) as held:
        held.snapshots.save({"kept": 1})
        stopped = held.snapshots.folder
    folders = [finish(epochs) for epochs in range(1, FINISHED_KEPT + 3)]
    assert [folder.exists() for folder in folders] == [False] * 2 + [True] * FINISHED_KEPT
    assert stopped.exists()
    assert {path.with_suffix("") for path in stopped.parent.glob("*.lock")} == {stopped, *folders[2:]}


def test_the_newest_are_those_that_changed_last() -> None:
    """The names of folders begin with a digest, so their order says nothing."""
    folders = [finish(epochs) for epochs in range(1, FINISHED_KEPT + 1)]
    for age, folder in enumerate(folders):
        os.utime(folder, (1000 - age, 1000 - age))
    finish(FINISHED_KEPT + 1)
    assert [folder.exists() for folder in folders] == [True] * (FINISHED_KEPT - 1) + [False]


@pytest.mark.parametrize("place", workdir.CODE)
def test_the_code_is_that_of_each_listed_part(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit, a module that is new, and one that has another name; but no file that is not a module."""
    package = tmp_path / "leanresnet"
    for each in workdir.CODE:
        module = package / each if each.endswith(".py") else package / each / "module.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text("x = 1\n")
    monkeypatch.setattr(workdir.leanresnet, "__file__", str(package / "__init__.py"))
    digests = [workdir._code_digest()]
    module = package / place if place.endswith(".py") else package / place / "module.py"
    (module.parent / "note.txt").touch()
    assert workdir._code_digest() == digests[0]
    module.write_text("x = 2\n")
    digests.append(workdir._code_digest())
    if not place.endswith(".py"):
        (package / place / "deeper").mkdir()
        module = module.rename(package / place / "deeper" / "module.py")
        digests.append(workdir._code_digest())
        (package / place / "new.py").touch()
        digests.append(workdir._code_digest())
    assert len(set(digests)) == len(digests)


def test_trainings_that_fail_leave_the_newest_folders_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workdir, "STOPPED_KEPT", 2)
    folders = []

    def stop(epochs: int) -> None:
        with open_workdir({"params": {"epochs": epochs}}) as held:
            held.snapshots.save({"kept": 1})
            folders.append(held.snapshots.folder)
            raise StoppedError("stopped", signal.SIGTERM)

    for epochs in range(1, 5):
        with pytest.raises(StoppedError):
            stop(epochs)
        aged(folders[-1])
    assert [folder.exists() for folder in folders] == [False, False, True, True]


def test_the_parent_is_the_longest_finished_one_with_fewer_epochs() -> None:
    for epochs in (2, 4, 9):
        finish(epochs)
    with open_workdir({"params": {"epochs": 3, "lr": 1}}) as held:
        held.finish("0a1b")
    with open_workdir({"params": {"epochs": 6}}) as held:
        parent = held.parent()
        assert parent is not None
        assert (parent.epochs, held.extended_from) == (4, None)
        held.extend(parent)
        shortest = held.parent(2)
        assert shortest is not None
        assert (shortest.epochs, held.extended_from) == (2, 4)
    with open_workdir({"params": {"epochs": 2}}) as held:
        assert held.parent() is None
