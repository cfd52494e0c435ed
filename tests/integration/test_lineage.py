"""From a model back to what it was made of, in a checkout in which `dvc repro` has run."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Checkout, outside_environment
from forked import path_of_forks
from test_tracking import runs_by_model

from leanresnet.analysis.dvc_lock import Locked, Stage
from leanresnet.analysis.lineage import _commands, lineage
from leanresnet.analysis.runs import RunRecord
from leanresnet.errors import DataError


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
    commands = text.partition("rebuild, or restore what DVC's cache still has\n")[2]
    environment = outside_environment(PATH=path_of_forks())
    subprocess.run(["bash", "-ec", commands], cwd=copy, env=environment, check=True, capture_output=True)
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
    for target, reason in (("0" * 32, "neither a file nor a run's id"), (tmp_path / "other.safetensors", "no run")):
        with pytest.raises(DataError, match=reason):
            trace(checkout.folder, target)


def test_code_behind_a_link_is_fetched_first(tmp_path: Path) -> None:
    checkout, workspace = tmp_path / "the checkout", tmp_path / "workspace"
    (checkout / "src/leanresnet").mkdir(parents=True)
    (workspace / "src").mkdir(parents=True)
    (workspace / "src/leanresnet").symlink_to(checkout / "src/leanresnet")
    tags = {"dvc.stage": "train@a", "dvc.weights_md5": "0", "git.commit": 40 * "a"}
    run = RunRecord("1", "name", "FINISHED", tags, {}, {}, list)
    fetch = f"    git -C '{checkout}' checkout {40 * 'a'}"
    assert fetch not in _commands(run, None, "ab", workspace)
    (checkout / ".git").mkdir()
    assert _commands(run, None, "ab", workspace)[1:] == [fetch, "    dvc repro train@a"]
    tags["git.commit"] = "unknown"
    assert fetch not in _commands(run, None, "ab", workspace)


def test_a_name_in_a_command_is_quoted_for_the_shell(tmp_path: Path) -> None:
    tags = {"dvc.stage": "train@a; touch x", "dvc.weights_md5": "0"}
    run = RunRecord("1", "name", "FINISHED", tags, {}, {}, list)
    assert _commands(run, None, "ab", tmp_path)[-1] == "    dvc repro 'train@a; touch x'"
    outs = [{"path": "models/$(touch x)'/model.safetensors", "md5": "0"}]
    found = Locked(None, "train@a; touch x", {"train@a; touch x": Stage.model_validate({"outs": outs})})
    *_, stage, check = _commands(run, found, "ab", tmp_path)
    assert shlex.split(stage) == ["dvc", "repro", "train@a; touch x"]
    assert shlex.split(check)[1] == "ab  models/$(touch x)'/model.safetensors"


def test_what_no_stage_makes_is_named(tmp_path: Path) -> None:
    """A teacher from elsewhere, which DVC does not keep."""
    weights = {"path": "models/student/model.safetensors", "md5": "0"}
    split = {"path": "data/train.safetensors", "md5": "1"}
    teacher = {"path": "models/external/model.safetensors", "md5": "2"}
    code = {"path": "src/leanresnet/models", "md5": "3"}
    stages = {
        "split": Stage.model_validate({"outs": [split]}),
        "distill": Stage.model_validate({"deps": [split, teacher, code], "outs": [weights]}),
    }
    run = RunRecord("1", "name", "FINISHED", {"dvc.stage": "distill", "dvc.weights_md5": "0"}, {}, {}, list)
    *_, needed, repro, _ = _commands(run, Locked(None, "distill", stages), "ab", tmp_path)
    assert needed == "    # No stage makes models/external/model.safetensors, which has to have md5 2."
    assert repro == "    dvc repro distill"


def test_a_training_that_was_extended_is_extended_again(tmp_path: Path) -> None:
    tags = {"model": "baseline", "dvc.stage": "train@baseline", "dvc.weights_md5": "0"}
    run = RunRecord("1", "name", "FINISHED", tags, {"extended_from": "4"}, {}, list)
    _, first, again = _commands(run, None, "ab", tmp_path)
    assert "epochs of baseline to 4 in params.yaml, run `dvc repro --no-run-cache train@baseline`" in first
    assert again == "    LEANRESNET_EXTEND=1 dvc repro train@baseline"
