"""dvc.lock in every state in which people have it."""

import json
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from imports import ROOT

from leanresnet.analysis.backfill import log_restored
from leanresnet.analysis.dvc_experiments import params_of_experiment, weights_of_experiments
from leanresnet.analysis.dvc_lock import LOCK, Locked, find_locked, read_lock, read_stages
from leanresnet.errors import ConfigError, DataError, StorageError
from leanresnet.scaffold.presets import load_preset, merge

WHOLE = {
    "schema": "2.0",
    "stages": {
        "split": {"cmd": "", "outs": [{"path": "data", "hash": "md5", "md5": "1.dir", "nfiles": 3}]},
        "train": {
            "cmd": "",
            "deps": [{"path": "data", "md5": "1.dir"}, {"path": "code.py", "md5": "2"}],
            "params": {"params.yaml": {"train.lr": 0.1}},
            "outs": [{"path": "model.safetensors", "md5": "3"}, {"path": "s3://versioned", "version_id": "4"}],
        },
    },
}
CONFLICT = "schema: '2.0'\nstages:\n<<<<<<< HEAD\n  a: {}\n=======\n  b: {}\n>>>>>>> other\n"
DAMAGED = {
    "line 3 is a mark of a merge conflict": CONFLICT.encode(),
    "not valid YAML (syntax)": b"\xff\xfe\0\1",
    "line 1, column 10: not valid YAML (": b"stages: {",
    "not valid YAML (nested too deeply)": b"[" * 1000,
    "not valid YAML (month must be in 1..12": b"schema: 2024-99-99\n",
    "schema is not valid": b"train: {cmd: x, outs: [{path: a, md5: b}]}",
    "its top level is not valid": b"- a\n",
    "schema is not valid (Input should be '2.0')": b"schema: '3.0'\nstages: {}\n",
    "stages is not valid": b"schema: '2.0'\nstages: []\n",
    "stages.a is not valid": b"schema: '2.0'\nstages: {a: 1}\n",
    "stages.a.outs.0.path is not valid": b"schema: '2.0'\nstages: {a: {outs: [{md5: x}]}}\n",
    "stages.a.deps.0.md5 is not valid": b"schema: '2.0'\nstages: {a: {deps: [{path: x, md5: 5}]}}\n",
}


def write(folder: Path, content: bytes | dict[str, Any]) -> Path:
    (folder / LOCK).write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    return folder


@pytest.mark.parametrize("reason", DAMAGED)
def test_what_dvc_does_not_write_is_one_line_with_the_remedy(tmp_path: Path, reason: str) -> None:
    write(tmp_path, DAMAGED[reason])
    for read in (read_lock, log_restored, lambda root: find_locked("3", root)):
        with pytest.raises(DataError) as caught:
            read(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / LOCK}: {reason}")
        assert str(caught.value).endswith("(`git checkout HEAD -- dvc.lock`, or without it `dvc repro`)")


def test_a_lock_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(StorageError, match=r"dvc\.lock: cannot be read \(Is a directory\)$"):
        read_lock(tmp_path)


def test_no_lock_and_an_empty_one_have_no_stage(tmp_path: Path) -> None:
    assert read_lock(tmp_path) == {}
    assert read_lock(write(tmp_path, b"")) == {}


def test_stages_are_read_with_what_has_a_digest(tmp_path: Path) -> None:
    found = find_locked("3", write(tmp_path, WHOLE))
    assert found is not None
    assert (found.commit, found.stage, found.before()) == (None, "train", ["split", "train"])
    assert found.outs("train") == {"model.safetensors": "3"}
    assert found.params() == "train:\n  lr: 0.1\n"


def test_stages_in_a_circle_are_listed_once() -> None:
    a = {"deps": [{"path": "b", "md5": "1"}], "outs": [{"path": "a", "md5": "2"}]}
    b = {"deps": [{"path": "a", "md5": "2"}], "outs": [{"path": "b", "md5": "1"}]}
    stages = read_stages(yaml.safe_dump({"schema": "2.0", "stages": {"a": a, "b": b}}))
    assert Locked(None, "a", stages).before() == ["b", "a"]


def repository(folder: Path) -> Callable[..., str]:
    """Make the folder a repository; return a function that runs git in it and returns what git prints."""

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=tests", "-c", "user.email=tests@example.org"]
        command = ["git", "-C", str(folder), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    return git


def test_a_commit_with_a_damaged_lock_is_passed_over(tmp_path: Path) -> None:
    git = repository(tmp_path)
    damaged = CONFLICT.encode() + b"# 3weights\xff\n"
    whole = yaml.safe_dump(WHOLE).replace("'3'", "3weights").encode()
    for content in (whole, b"", damaged, b""):
        write(tmp_path, content)
        git("add", LOCK)
        git("commit", "--quiet", "--message", "lock")
    found = find_locked("3weights", tmp_path)
    assert found is not None
    assert found.commit is not None


def test_of_stages_with_the_same_weights_the_one_that_is_meant_is_found(tmp_path: Path) -> None:
    outs = {name: [{"path": f"models/{name}/model.safetensors", "md5": "3"}] for name in ("a", "b")}
    write(tmp_path, {"schema": "2.0", "stages": {f"train@{name}": {"outs": each} for name, each in outs.items()}})
    found = [find_locked("3", tmp_path, stage) for stage in ("train@a", "train@b", "distill", "")]
    assert [each and each.stage for each in found] == ["train@a", "train@b", "train@a", "train@a"]


def test_models_of_experiments_and_of_other_branches_are_found(tmp_path: Path) -> None:
    git = repository(tmp_path)
    commits = []
    for weights in ("of main", "of a branch", "of an experiment", "of another"):
        outs = [{"path": "models/a/model.safetensors", "md5": weights}]
        write(tmp_path, {"schema": "2.0", "stages": {"train@a": {"outs": outs}}})
        git("add", LOCK)
        git("commit", "--quiet", "--message", weights)
        commits.append(git("rev-parse", "HEAD"))
    git("branch", "side", commits[1])
    # As DVC keeps them.
    begin = f"refs/exps/{commits[0][:2]}/{commits[0][2:]}"
    git("update-ref", f"{begin}/slow", commits[2])
    git("update-ref", "refs/exps/exec/EXEC_HEAD", commits[3])
    git("reset", "--quiet", "--hard", commits[0])
    for weights, commit in zip(("of main", "of a branch", "of an experiment"), commits, strict=False):
        found = find_locked(weights, tmp_path)
        assert found is not None
        assert found.commit == commit
    assert weights_of_experiments(tmp_path, ["slow"]) == {"slow": ["of an experiment"]}


def test_an_experiment_is_about_the_models_that_it_or_another_of_its_name_changes(tmp_path: Path) -> None:
    git = repository(tmp_path)

    def commit(**weights: str) -> str:
        outs = [{"path": f"models/{name}/model.safetensors", "md5": md5} for name, md5 in weights.items()]
        outs.append({"path": "models/a/model.json", "md5": "another file"})
        write(tmp_path, {"schema": "2.0", "stages": {"train": {"outs": outs}}})
        git("add", LOCK)
        git("commit", "--quiet", "--allow-empty", "--message", "lock")
        return git("rev-parse", "HEAD")

    first = commit(a="a1", b="b1")
    for base, name, weights in (
        (first, "sweep-same", {"a": "a1", "b": "b1"}),
        (first, "sweep-other", {"a": "a2", "b": "b1"}),
        (first, "alone", {"a": "a1", "b": "b1"}),
        (first, "sweeping", {"a": "a3", "b": "b3"}),
    ):
        git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", commit(**weights))
    assert weights_of_experiments(tmp_path, ["sweep", "alone"]) == {
        "sweep-same": ["a1"],
        "sweep-other": ["a2"],
        "alone": ["a1", "b1"],
    }
    assert weights_of_experiments(tmp_path, []) == {}


def test_the_params_of_an_experiment_are_those_of_the_newest_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git, dates = repository(tmp_path), count(1_700_000_000)
    base = load_preset("demo", ROOT / "presets").params.model_dump(mode="json")

    def commit(name: str, text: str) -> None:
        (tmp_path / "params.yaml").write_text(text)
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"{next(dates)} +0000")
        git("add", "params.yaml")
        git("commit", "--quiet", "--message", "params")
        head = git("rev-parse", "HEAD")
        git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", head)

    for seed in (3, 4):
        commit("seeds", json.dumps(merge(base, {"train": {"baseline": {"seed": seed}}})))
    found = params_of_experiment(tmp_path, "seeds")
    assert found is not None
    assert found.train.baseline.seed == 4
    assert params_of_experiment(tmp_path, "seed") is None
    for text, reason in (("split: {}", "missing, expected"), ("split: [", "not valid YAML")):
        commit("older", text)
        with pytest.raises(ConfigError, match=rf"^params\.yaml of the experiment older: .*{reason}"):
            params_of_experiment(tmp_path, "older")


@pytest.mark.parametrize("folder", ["/elsewhere", "../elsewhere"])
def test_models_outside_of_the_workspace_are_not_its_own(tmp_path: Path, folder: str) -> None:
    outs = [{"path": f"{folder}/{name}", "md5": "1"} for name in ("model.safetensors", "model.json", "train.json")]
    write(tmp_path, {"schema": "2.0", "stages": {"train": {"outs": outs}}})
    assert log_restored(tmp_path) == 0
