"""The champion, in a real registry, and served as a user serves it."""

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Checkout, outside_environment
from databases import client_of, place_database
from filelock import FileLock, Timeout
from forked import run_program
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from test_tracking import runs_by_model
from waiting import PATIENCE, free_port, wait_for

from leanresnet.analysis import runs as registry
from leanresnet.analysis.champion import MEASURED, best, is_candidate, register_champion
from leanresnet.analysis.lineage import TRAINING_TAGS
from leanresnet.analysis.runs import RunRecord
from leanresnet.data.splits import load_split
from leanresnet.errors import DataError
from leanresnet.models.checkpoint import load_model

NAME = "leanresnet-digits"


def run(accuracy: float, parameters: float = 100, budget: str = "100", split: str = "a") -> RunRecord:
    metrics = {
        "val/best_accuracy": 1 - accuracy,
        "val/evaluated_accuracy": accuracy,
        "test/accuracy": 1 - accuracy,
        "model/parameters": parameters,
    }
    return RunRecord(
        str(accuracy), "", "FINISHED", {"dvc.validation_md5": split}, {"max_parameters": budget}, metrics, list
    )


def test_only_evaluated_models_within_a_budget_are_candidates() -> None:
    assert is_candidate(run(0.5))
    assert not is_candidate(run(0.5, 101))
    assert not is_candidate(run(0.5, budget="None"))
    unmeasured = run(0.5)
    del unmeasured.metrics["test/accuracy"]
    assert not is_candidate(unmeasured)


def test_validation_decides_then_size_then_age() -> None:
    assert best([run(0.5), run(0.7), run(0.6)]).run_id == "0.7"
    small, first, second = run(0.7, 50), run(0.7, 60), run(0.7, 60)
    assert best([first, small]) is small
    assert best([first, second]) is first


def test_only_accuracies_on_the_newest_validation_split_compare() -> None:
    assert best([run(0.9, split="easy"), run(0.5), run(0.6), run(0.4)]).run_id == "0.6"


def test_accuracies_on_the_validation_split_of_the_workspace_compare_if_there_are_any() -> None:
    ours, theirs = run(0.5, split="ours"), run(0.9, split="theirs")
    assert best([ours, theirs], {"ours", "another file"}) is ours
    assert best([ours, theirs], {"another file"}) is theirs


def complete(**changes: str) -> RunRecord:
    """A candidate of which a model card can be written."""
    known = run(0.5)
    known.tags.update(dict.fromkeys(TRAINING_TAGS, "known") | changes)
    known.metrics.update(dict.fromkeys(MEASURED, 1.0))
    return known


@pytest.mark.parametrize("budget", ["²", "9" * 5000, "-1", "", "5e6"])
def test_a_budget_that_is_no_number_is_none(budget: str) -> None:
    assert not is_candidate(run(0.5, budget=budget))


def test_a_candidate_of_somebody_else_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign, odd, ours = run(0.9), complete(dataset="a/b' or"), complete()
    del foreign.metrics["val/evaluated_accuracy"]
    found = [run(0.8), odd, foreign, ours]
    registered: list[RunRecord] = []
    monkeypatch.setattr(registry, "find_finished", lambda: found)
    monkeypatch.setattr(registry, "register", lambda run, *_: registered.append(run) or "7")
    monkeypatch.setattr(registry, "upload", lambda *_: None)
    monkeypatch.setattr(registry, "download", lambda *_: None)
    (line,) = register_champion(tmp_path)
    assert registered == [ours]
    assert line.startswith("leanresnet-known version 7 @champion: run 0.5 ")
    lacking, named = capsys.readouterr().err.splitlines()
    assert lacking.startswith("warning: run 0.8 : left out, it lacks model, dataset, dvc.stage, ")
    assert named == 'warning: run 0.5 : left out, its data set is called "a/b\' or"'


def test_the_champion_is_the_best_on_the_validation_split_of_the_workspace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A newer run has a higher accuracy on another one."""
    ours, theirs = (complete(**{"dvc.validation_md5": split}) for split in ("ours", "theirs"))
    theirs.metrics["val/evaluated_accuracy"] = 2.0
    outs = [{"path": "data/validation.safetensors", "md5": "ours"}]
    (tmp_path / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"split": {"outs": outs}}}))
    registered: list[RunRecord] = []
    monkeypatch.setattr(registry, "find_finished", lambda: [ours, theirs])
    monkeypatch.setattr(registry, "register", lambda run, *_: registered.append(run) or "7")
    monkeypatch.setattr(registry, "upload", lambda *_: None)
    monkeypatch.setattr(registry, "download", lambda *_: None)
    register_champion(tmp_path)
    assert registered == [ours]


def test_a_lineage_with_the_stages_is_not_replaced_by_one_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a workspace without git, the next training replaces what dvc.lock says of the champion."""
    cards: list[str | None] = []
    texts: list[str] = []

    def register(run: RunRecord, name: str, alias: str, description: str | None) -> str:
        cards.append(description)
        return "1"

    monkeypatch.setattr(registry, "find_finished", lambda: [complete(dataset="a")])
    monkeypatch.setattr(registry, "register", register)
    monkeypatch.setattr(registry, "upload", lambda run_id, path, folder: texts.append(path.read_text()))
    monkeypatch.setattr(
        registry, "download", lambda run_id, artifact, folder: folder / "lineage.txt" if texts else None
    )
    lock = tmp_path / "dvc.lock"
    for weights in ("known", "known", "another"):
        outs = [{"path": "models/a/model.safetensors", "md5": weights}]
        lock.write_text(json.dumps({"schema": "2.0", "stages": {"train@a": {"outs": outs}}}))
        register_champion(tmp_path)
    assert [text.count("dvc.lock of this workspace") for text in texts] == [1, 1]
    assert [card is None for card in cards] == [False, False, True]


@pytest.fixture(scope="module")
def crowned(checkout: Checkout) -> str:
    return checkout.shell("leanresnet", "champion").stdout


def test_the_best_within_the_budget_is_registered_once_with_its_card(checkout: Checkout, crowned: str) -> None:
    runs = runs_by_model(checkout.folder)
    candidates = [runs["baseline"], runs["student"]]
    expected = max(each.data.metrics["val/evaluated_accuracy"] for each in candidates)
    client = client_of(checkout.folder)
    version = client.get_model_version_by_alias(NAME, "champion")
    crowned_run = client.get_run(version.run_id)
    assert crowned_run.data.tags["model"] != "teacher"
    assert crowned_run.data.metrics["val/evaluated_accuracy"] == expected
    assert crowned.startswith(f"{NAME} version {version.version} @champion: run {version.run_id} ")
    card = version.description
    assert f"| test accuracy | {crowned_run.data.metrics['test/accuracy']:.2%} |" in card
    assert sum("test accuracy of" in line for line in card.splitlines()) == 10
    assert "        dvc repro " in card
    assert checkout.shell("leanresnet", "champion").stdout == crowned
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1


@pytest.fixture
def served(checkout: Checkout, crowned: str) -> Iterator[str]:
    port = free_port()
    uri = f"sqlite:///{checkout.folder / 'mlflow.db'}"
    environment = outside_environment(MLFLOW_TRACKING_URI=uri, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    model = ["--model-uri", f"models:/{NAME}@champion", "--env-manager", "local", "--port", str(port)]
    command = [sys.executable, "-m", "mlflow", "models", "serve", *model]
    # In a session of its own, so that its workers end with it.
    server = subprocess.Popen(command, cwd=checkout.folder, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(address) or server.poll() is not None)
        assert server.poll() is None
        yield address
    finally:
        server.terminate()
        server.wait(PATIENCE)


def post(address: str, content: bytes) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(f"{address}/invocations", content, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=PATIENCE):  # noqa: S310
            return True
    except OSError:
        return False


def test_the_served_champion_answers_requests_and_refuses_bad_ones(served: str, checkout: Checkout) -> None:
    version = client_of(checkout.folder).get_model_version_by_alias(NAME, "champion")
    name = client_of(checkout.folder).get_run(version.run_id).data.tags["model"]
    images = load_split(checkout.folder / "data/test.safetensors").images[:3]
    status, answer = post(served, json.dumps({"inputs": images.tolist()}).encode())
    assert status == 200
    expected = load_model(checkout.folder / "models" / name).net(images)
    torch.testing.assert_close(torch.tensor(answer["predictions"]), expected, atol=1e-4, rtol=1e-4)
    normalised, beyond = ({"inputs": numbers.tolist()} for numbers in (images / 255, images.int() + 1 + 255))
    contents = [{}, {"inputs": "no image"}, {"inputs": [[1, 2]]}, normalised, beyond]
    for content in (b"no json", *(json.dumps(each).encode() for each in contents)):
        status, answer = post(served, content)
        assert 400 <= status < 500, content
        assert answer["message"]


def test_a_model_that_was_deleted_in_mlflow_is_logged_again_and_registered(
    checkout: Checkout, crowned: str, tmp_path: Path
) -> None:
    # In a copy: MLflow gives a model that is logged again its metrics without their data sets, which others test.
    space = Checkout(shutil.copytree(checkout.folder, tmp_path / "space", symlinks=True), checkout.first_repro)
    client = client_of(space.folder)
    before = client.get_model_version_by_alias(NAME, "champion")
    ended = client.get_run(before.run_id).info.end_time
    client.delete_logged_model(before.source.removeprefix("models:/"))
    space.shell("leanresnet", "champion")
    version = client.get_model_version_by_alias(NAME, "champion")
    assert int(version.version) == int(before.version) + 1
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert (model.source_run_id, model.status.name) == (before.run_id, "READY")
    info = client.get_run(before.run_id).info
    assert (info.status, info.end_time) == ("FINISHED", ended)


class Registry:
    """MLflow's, in which somebody else is faster by one step; `log_model` adds to `models`."""

    MlflowException = MlflowException

    def __init__(self, folder: Path) -> None:
        self.models: list[SimpleNamespace] = []
        self.versions: list[SimpleNamespace] = []
        self.aliases: list[str] = []
        self.lock = FileLock(folder / ".work" / "registry.lock", timeout=0)
        self.get_run = lambda _: SimpleNamespace(info=SimpleNamespace(experiment_id="1", status="FINISHED", end_time=5))
        self.set_terminated = self.update_model_version = lambda *_: None
        self.search_model_versions = lambda _: list(self.versions)
        self.artifacts: list[str] = []

    def MlflowClient(self) -> "Registry":  # noqa: N802
        return self

    def search_logged_models(self, *_: object) -> list[SimpleNamespace]:
        return self.models

    def list_artifacts(self, *_: object) -> list[str]:
        return self.artifacts

    def register_model(self, uri: str, name: str) -> SimpleNamespace:
        version = SimpleNamespace(version=len(self.versions) + 1, source=uri)
        self.versions.append(version)
        return version

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        with pytest.raises(Timeout):
            self.lock.acquire()
        self.aliases.append(version)
        if len(self.aliases) == 1:
            raise MlflowException("UNIQUE constraint failed: registered_model_aliases.name")


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / ".work").mkdir()
    fake = Registry(tmp_path)
    monkeypatch.setattr(registry, "connect", lambda: fake)
    return fake


def test_who_registers_at_the_same_time_does_not_make_it_fail(another: Registry) -> None:
    another.models.append(SimpleNamespace(model_id="m", status=LoggedModelStatus.READY))
    assert registry.register(run(0.5), "name", "champion", "card") == "1"
    assert (len(another.versions), another.aliases) == (1, ["1", "1"])


def test_a_model_that_did_not_arrive_whole_is_none(another: Registry) -> None:
    another.models.append(SimpleNamespace(model_id="m", status=LoggedModelStatus.PENDING))
    with pytest.raises(
        DataError, match=r"^run 0\.5: MLflow has neither its model nor its checkpoint any more, expected"
    ):
        registry.register(run(0.5), "name", "champion", "card")


def test_without_a_candidate_it_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    place_database(tmp_path)
    done = run_program("champion", cwd=tmp_path, env=outside_environment())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "expected: an evaluated model within its budget" in done.stderr
