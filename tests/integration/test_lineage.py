"""From a model back to what it was made of, in a checkout in which `dvc repro` has run."""

import json
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Checkout, outside_environment
from forked import path_of_forks
from test_tracking import runs_by_model

from leanresnet.analysis import runs
from leanresnet.analysis.dvc_lock import Locked, Stage, find_locked
from leanresnet.analysis.lineage import _place, lineage
from leanresnet.analysis.rebuild import commands
from leanresnet.analysis.runs import RunRecord
from leanresnet.errors import DataError
from leanresnet.tracking.events import WEIGHTS_TAG
from leanresnet.tracking.git import git

AUTHOR = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")


def trace(folder: Path, target: object) -> str:
    # The database of that folder and no other, wherever the copy of the checkout lies.
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patched.setenv("DVC_ROOT", str(folder))
        return lineage(str(target), folder)


@pytest.fixture
def copy(checkout: Checkout, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(checkout.folder, folder, symlinks=True)
    return folder


def test_a_run_its_folder_and_a_copy_of_its_weights_have_one_lineage(checkout: Checkout, tmp_path: Path) -> None:
    run = runs_by_model(checkout.folder)["student"]
    by_folder = checkout.shell("leanresnet", "lineage", "models/student").stdout
    shutil.copy(checkout.folder / "models/student/model.safetensors", tmp_path / "found.safetensors")
    assert by_folder == trace(checkout.folder, run.info.run_id) + "\n"
    assert by_folder == trace(checkout.folder, tmp_path / "found.safetensors") + "\n"


def test_it_names_code_data_teacher_stages_and_params(checkout: Checkout) -> None:
    text = trace(checkout.folder, checkout.folder / "models/student")
    runs = runs_by_model(checkout.folder)
    about = json.loads((checkout.folder / "models/student/model.json").read_text())
    code, committed = checkout.shell("git", "rev-parse", "HEAD~1", "HEAD").stdout.split()
    assert f"student: {about['parameters']:,} parameters" in text
    assert f"SHA-256 {about['sha256']}" in text
    assert f"commit {code}\n" in text
    assert f"teacher  teacher, run {runs['teacher'].info.run_id}\n" in text
    assert f"dvc.lock of commit {committed}\n" in text
    stages = [line.split()[0] for line in text.splitlines() if line.startswith("    ") and len(line.split()) == 3]
    assert list(dict.fromkeys(stages))[:4] == ["download", "split", "train@teacher", "distill"]
    assert f"{about['train_md5']} (training)" in text
    assert "train:\n" in text
    assert "  teacher:\n" in text
    assert "train.baseline:" not in text


def test_its_commands_give_the_same_weights_again(copy: Path) -> None:
    """Also where params.yaml has other values by now, which git would keep."""
    params = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(params.replace("seed: 0", "seed: 9"))
    text = trace(copy, copy / "models/student")
    shutil.rmtree(copy / "models")
    printed = text.partition("rebuild, or restore what DVC's cache still has\n")[2]
    environment = outside_environment(PATH=path_of_forks())
    subprocess.run(["bash", "-ec", printed], cwd=copy, env=environment, check=True, capture_output=True)
    assert (copy / "models/student/model.safetensors").exists()
    assert (copy / "params.yaml").read_text() == params


def test_a_model_of_an_earlier_commit_is_found_there(copy: Path) -> None:
    before = trace(copy, copy / "models/baseline")
    (copy / "dvc.lock").unlink()
    stash = "    git stash --include-untracked\n"
    assert trace(copy, copy / "models/baseline").replace(stash, "") == before


def test_without_git_and_without_a_lock_it_says_so(copy: Path) -> None:
    shutil.rmtree(copy / ".git")
    text = trace(copy, copy / "models/baseline")
    assert "dvc.lock of this workspace, not committed\n" in text
    assert "still has, with the code above and these params in params.yaml,\n    dvc repro train@baseline\n" in text
    (copy / "dvc.lock").unlink()
    text = trace(copy, copy / "models/baseline")
    assert "rebuild: dvc.lock has these weights neither here nor in a commit" in text
    assert "optimizer.lr: " in text


def test_what_no_run_made_is_named(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"other")
    neither, folder = "neither a file nor a run's id", "a folder without model.safetensors"
    for target, reason in (
        ("0" * 32, neither),
        ("", folder),
        (tmp_path, folder),
        (tmp_path / "other.safetensors", "no run"),
    ):
        with pytest.raises(DataError, match=reason):
            trace(checkout.folder, target)


def training(model: str = "baseline", stage: str = "train@baseline", md5: str = "0", **params: str) -> RunRecord:
    tags = {"model": model, "dvc.stage": stage, "dvc.weights_md5": md5, WEIGHTS_TAG: "ab", "git.commit": 40 * "a"}
    return RunRecord("1", "name", "FINISHED", tags, params, {}, list)


def locked(stage: str = "train@baseline", epochs: int = 6, **stages: object) -> Locked:
    """A dvc.lock in which this stage made the weights "0"."""
    own = {
        "outs": [{"path": "models/baseline/model.safetensors", "md5": "0"}],
        "params": {"params.yaml": {"train.baseline": {"epochs": epochs}}},
    }
    return Locked(None, stage, {name: Stage.model_validate(each) for name, each in {stage: own, **stages}.items()})


def test_of_models_with_the_same_weights_it_is_about_the_one_that_is_meant(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the description beside the weights, and of a teacher by its name in the student's params."""
    student, copied = checkout.folder / "models/student", tmp_path / "found.safetensors"
    shutil.copy(student / "model.safetensors", copied)
    asked: list[object] = []
    find_run, find_stage = runs.find_run_of_weights, find_locked

    def find_run_of_weights(sha256: str, model: str | None = None) -> RunRecord | None:
        asked.append(model)
        return find_run(sha256, model)

    def find_locked_stage(md5: str, root: Path, stage: str = "") -> Locked | None:
        asked.append(stage)
        return find_stage(md5, root, stage)

    monkeypatch.setattr(runs, "find_run_of_weights", find_run_of_weights)
    monkeypatch.setattr("leanresnet.analysis.lineage.find_locked", find_locked_stage)
    for target, name in ((student, "student"), (student / "model.safetensors", "student"), (copied, None)):
        trace(checkout.folder, target)
        assert asked == [name, "distill", "teacher"]
        asked.clear()


def test_code_behind_a_link_is_fetched_first(tmp_path: Path) -> None:
    checkout, workspace = tmp_path / "the checkout", tmp_path / "workspace"
    (checkout / "src/leanresnet").mkdir(parents=True)
    (workspace / "src").mkdir(parents=True)
    (workspace / "src/leanresnet").symlink_to(checkout / "src/leanresnet")
    run = training()
    fetch = f"    git -C '{checkout}' checkout {40 * 'a'}"
    assert fetch not in commands(run, None, None, workspace)
    git(checkout, "init", "--quiet")
    assert commands(run, None, None, workspace)[1:] == [fetch, "    dvc repro train@baseline"]
    (checkout / "src/leanresnet/new.py").touch()
    stash = f"    git -C '{checkout}' stash --include-untracked"
    assert commands(run, None, None, workspace)[1:] == [stash, fetch, "    dvc repro train@baseline"]
    run.tags["git.commit"] = "unknown"
    assert fetch not in commands(run, None, None, workspace)


def test_the_link_of_another_machine_is_made_anew(tmp_path: Path) -> None:
    """git brings the link that the commit has."""
    workspace, link = tmp_path / "space", tmp_path / "space/src/leanresnet"
    link.parent.mkdir(parents=True)
    link.symlink_to("/another machine/leanresnet")
    for arguments in (["init", "--quiet"], ["add", "--all"], [*AUTHOR, "commit", "--quiet", "--message", "space"]):
        assert git(workspace, *arguments) is not None
    commit = (git(workspace, "rev-parse", "HEAD") or "").strip()
    found = replace(locked(), commit=commit)
    fetch = f"    git checkout {commit}"
    assert commands(training(epochs="6"), None, found, workspace)[1:3] == [fetch, "    dvc repro train@baseline"]
    link.unlink()
    link.symlink_to(tmp_path / "the code")
    anew = f"    ln -sfn '{tmp_path / 'the code'}' src/leanresnet"
    stash = "    git stash --include-untracked"
    assert commands(training(epochs="6"), None, found, workspace)[1:4] == [stash, fetch, anew]


def test_a_name_in_a_command_is_quoted_for_the_shell(tmp_path: Path) -> None:
    run = training(stage="train@a; touch x")
    assert commands(run, None, None, tmp_path)[-1] == "    dvc repro 'train@a; touch x'"
    outs = [{"path": "models/$(touch x)'/model.safetensors", "md5": "0"}]
    found = Locked(None, "train@a; touch x", {"train@a; touch x": Stage.model_validate({"outs": outs})})
    *_, stage, check = commands(run, None, found, tmp_path)
    assert shlex.split(stage) == ["dvc", "repro", "train@a; touch x"]
    assert shlex.split(check)[1] == "ab  models/$(touch x)'/model.safetensors"


def test_what_no_stage_makes_is_named(tmp_path: Path) -> None:
    """A teacher from elsewhere, which DVC does not keep; how its own training went is not asked."""
    weights = {"path": "models/student/model.safetensors", "md5": "0"}
    split = {"path": "data/train.safetensors", "md5": "1"}
    external = {"path": "models/external/model.safetensors", "md5": "2"}
    code = {"path": "src/leanresnet/models", "md5": "3"}
    stages = {
        "split": Stage.model_validate({"outs": [split]}),
        "distill": Stage.model_validate({"deps": [split, external, code], "outs": [weights]}),
    }
    run, teacher = training("student", "distill"), training(md5="2", epochs="6", extended_from="4")
    needed, repro, _ = commands(run, teacher, Locked(None, "distill", stages), tmp_path)[1:]
    assert needed == "    # No stage makes models/external/model.safetensors, which has to have md5 2."
    assert repro == "    dvc repro distill"


def test_trainings_that_were_extended_are_extended_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first of them, and also that of a teacher."""
    shorter = training(epochs="5", extended_from="4")
    monkeypatch.setattr("leanresnet.analysis.runs.find_run", lambda run_id: {"before": shorter}.get(run_id))
    run = training(epochs="6", extended_from="5")
    run.tags["mlflow.parentRunId"] = "before"
    steps = [
        "    # The training of baseline was extended. Before the next command, set its epochs in params.yaml",
        "    # to 4 and run `dvc repro --no-run-cache train@baseline`,",
        "    # to 5 and run `LEANRESNET_EXTEND=1 dvc repro --no-run-cache train@baseline`,",
        "    # and to 6.",
        "    LEANRESNET_EXTEND=1 dvc repro train@baseline",
    ]
    assert commands(run, None, None, tmp_path)[1:] == steps
    assert commands(run, None, locked(), tmp_path)[1:-1] == steps
    student = training("student", "distill", md5="9", epochs="3")
    taught = {"outs": [{"path": "models/student/model.safetensors", "md5": "9"}]}
    found = replace(locked(distill=taught), stage="distill")
    assert commands(student, run, found, tmp_path)[1:-1] == [*steps, "    dvc repro distill"]


def test_a_training_of_several_processes_is_one_again(tmp_path: Path) -> None:
    run = training()
    run.tags.update({"processes": "2", "device": "a CPU", "torch": "2.11", "dataset": "digits", "git.dirty": "false"})
    assert commands(run, None, None, tmp_path)[-1] == "    LEANRESNET_NPROC=2 dvc repro train@baseline"
    assert _place(run) == "a CPU, torch 2.11, 2 processes"
    # A teacher of another number has to be there before.
    teacher, student = training("teacher", "train@teacher", md5="2"), training("student", "distill", md5="9")
    taught = {"outs": [{"path": "models/student/model.safetensors", "md5": "9"}]}
    found = replace(locked(distill=taught), stage="distill")
    assert commands(student, teacher, found, tmp_path)[1:-1] == ["    dvc repro distill"]
    teacher.tags["processes"] = "3"
    before = "    LEANRESNET_NPROC=3 dvc repro train@teacher"
    assert commands(student, teacher, found, tmp_path)[1:-1] == [before, "    dvc repro distill"]
    run.tags["processes"] = "1"
    assert commands(run, None, None, tmp_path)[-1] == "    dvc repro train@baseline"
    assert _place(run) == "a CPU, torch 2.11"


def test_a_training_that_was_extended_in_vain_has_its_own_epochs(tmp_path: Path) -> None:
    """dvc.lock has the longer one, with the same weights."""
    own, repro = commands(training(epochs="4"), None, locked(epochs=5), tmp_path)[1:-1]
    assert own.startswith(
        "    # dvc.lock has a training of 5 epochs with the same weights; set the epochs of baseline in"
    )
    assert own.endswith(" to 4.")
    assert repro == "    dvc repro train@baseline"
    assert commands(training(epochs="5"), None, locked(epochs=5), tmp_path)[1:-1] == [repro]


def test_code_with_changes_is_no_promise(tmp_path: Path) -> None:
    run = training()
    run.tags["git.dirty"] = "true"
    assert (
        commands(run, None, None, tmp_path)[1] == "    # The code had uncommitted changes, so the bytes may be others."
    )
