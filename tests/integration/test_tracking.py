"""MLflow, for real, on a database in a workspace."""

import getpass
import json
import re
import shlex
import shutil
import signal
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import Checkout, outside_environment
from databases import client_of, place_database, runs_of
from forked import run_code, run_program
from imports import ROOT
from mlflow import experiments
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from leanresnet.data.splits import load_split
from leanresnet.errors import ConfigError, StorageError
from leanresnet.files import file_hashes
from leanresnet.scaffold.presets import load_preset
from leanresnet.tracking import views
from leanresnet.tracking.connection import connect, page_addresses, tracking_uri

MODELS = ("baseline", "teacher", "student")
# Of each model of the demo.
EPOCHS = load_preset("demo", ROOT / "presets").params.train.baseline.epochs


def runs_by_model(folder: Path) -> dict[str, Run]:
    """The oldest run of each model."""
    return by_model(client_of(folder))


def by_model(client: MlflowClient) -> dict[str, Run]:
    experiment = client.get_experiment_by_name("leanresnet")
    digits = "tags.dataset = 'digits'"
    found = client.search_runs([experiment.experiment_id], digits, order_by=["attributes.start_time DESC"])
    return {run.data.tags["model"]: run for run in found}


@pytest.fixture
def runs(checkout: Checkout) -> dict[str, Run]:
    return runs_by_model(checkout.folder)


def test_one_finished_run_a_model_with_a_name_a_person_can_read(runs: dict[str, Run]) -> None:
    assert {model: run.info.run_name for model, run in runs.items()} == {m: f"{m}-sgd-e{EPOCHS}" for m in MODELS}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_the_three_runs_line_up_without_a_missing_column(runs: dict[str, Run]) -> None:
    params = [set(run.data.params) for run in runs.values()]
    metrics = [set(run.data.metrics) for run in runs.values()]
    assert params[0] == params[1] == params[2]
    # What the student's training measured by epoch.
    by_epoch = {"val/teacher_agreement", "val/teacher_gap"}
    assert [found - by_epoch for found in metrics] == [metrics[0] - by_epoch] * 3
    assert {"optimizer.lr", "model.blocks", "distill.temperature", "augmentation.crop_padding"} <= params[0]
    expected = {"train/loss", "val/accuracy", "val/best_accuracy", "test/accuracy", "test/teacher_gap", "lr"}
    expected |= {"val/evaluated_accuracy", "val/evaluated_teacher_gap"}
    assert expected | {"model/parameters", "model/macs", "images_per_second", "speed/latency_ms"} <= metrics[0]
    columns = {views.param(key) for key in params[0]} | {views.metric(key) for key in metrics[0]}
    assert {*views.RESULTS, *views.SWEEP} - {"tags.`dvc.experiment`"} <= columns


def test_a_run_says_what_it_was_made_from(checkout: Checkout, runs: dict[str, Run]) -> None:
    lock = (checkout.folder / "dvc.lock").read_text()
    commit = checkout.shell("git", "rev-parse", "HEAD~1").stdout.strip()
    for model, run in runs.items():
        tags = run.data.tags
        for key in ("dvc.train_md5", "dvc.weights_md5"):
            assert f"md5: {tags[key]}" in lock, key
        assert tags["git.commit"] == commit
        assert tags["dvc.stage"] == ("distill" if model == "student" else f"train@{model}")
        assert tags["torch"] == torch.__version__
        assert tags["seed"] == ("3" if model == "student" else "0")
        assert tags["git.dirty"] == "false"
        assert tags["device"]
        assert tags["mlflow.user"] == getpass.getuser()
        assert tags["mlflow.source.name"] == f"dvc.yaml:{tags['dvc.stage']}"
        assert tags["mlflow.source.git.commit"] == commit


def test_a_run_has_its_three_splits_with_schema_and_classes(checkout: Checkout, runs: dict[str, Run]) -> None:
    test_md5 = file_hashes(checkout.folder / "data/test.safetensors")[0]
    for run in runs.values():
        data = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
        assert {use: (each.name, each.digest) for use, each in data.items()} == {
            "training": ("digits-train", run.data.tags["dvc.train_md5"]),
            "validation": ("digits-validation", run.data.tags["dvc.validation_md5"]),
            "test": ("digits-test", test_md5),
        }
        for use, each in data.items():
            profile = json.loads(each.profile)
            split = load_split(checkout.folder / "data" / f"{each.name.removeprefix('digits-')}.safetensors")
            assert profile["num_rows"] == len(split), use
            assert profile["rows_by_class"] == split.counts(), use
            schema = TensorDatasetSchema.from_dict(json.loads(each.schema))
            assert schema.features.inputs[0].shape == (-1, 3, 32, 32)
            assert schema.targets.inputs[0].shape == (-1,)


def test_values_that_a_run_has_once_are_at_step_0(checkout: Checkout, runs: dict[str, Run]) -> None:
    client = client_of(checkout.folder)
    for key in ("model/parameters", "model/macs", "best_epoch", "test/accuracy", "speed/latency_ms", "test/loss"):
        assert [each.step for each in client.get_metric_history(runs["student"].info.run_id, key)] == [0], key


def test_models_have_their_names_and_their_accuracies_by_data_set(checkout: Checkout, runs: dict[str, Run]) -> None:
    client = client_of(checkout.folder)
    for name, run in runs.items():
        (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
        assert model.name == name
        found = {each.key: (each.value, each.dataset_name) for each in model.metrics}
        assert found["test/accuracy"] == (run.data.metrics["test/accuracy"], "digits-test")
        expected = (run.data.metrics["val/evaluated_accuracy"], "digits-validation")
        assert found["val/evaluated_accuracy"] == expected


def test_system_metrics_come_by_epoch(checkout: Checkout, runs: dict[str, Run]) -> None:
    client = client_of(checkout.folder)
    for key in ("system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"):
        history = client.get_metric_history(runs["teacher"].info.run_id, key)
        assert [each.step for each in history] == list(range(1, EPOCHS + 1)), key
        assert all(each.value > 0 for each in history)


def test_metrics_come_by_epoch_once(checkout: Checkout, runs: dict[str, Run]) -> None:
    client = client_of(checkout.folder)
    for key in ("train/loss", "val/accuracy", "lr", "images_per_second"):
        steps = [metric.step for metric in client.get_metric_history(runs["baseline"].info.run_id, key)]
        assert steps == list(range(1, EPOCHS + 1)), key


def test_the_student_links_to_its_teacher(runs: dict[str, Run]) -> None:
    assert runs["student"].data.tags["teacher.run_id"] == runs["teacher"].info.run_id
    assert runs["teacher"].info.run_id in runs["student"].data.tags["mlflow.note.content"]


def test_evaluation_and_artifacts_are_in_the_run_that_trained(checkout: Checkout, runs: dict[str, Run]) -> None:
    client = client_of(checkout.folder)
    for model, run in runs.items():
        report = json.loads((checkout.folder / f"results/{model}/test.json").read_text())
        assert run.data.metrics["test/accuracy"] == pytest.approx(report["test/accuracy"])
        assert run.data.metrics["val/evaluated_accuracy"] == pytest.approx(report["val/evaluated_accuracy"])
        results = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "results")}
        assert results >= {"history.csv", "curves.png", "test.json", "confusion.png", "mistakes.png"}
        kept = Path(client.download_artifacts(run.info.run_id, "checkpoint/model.safetensors"))
        assert kept.read_bytes() == (checkout.folder / f"models/{model}/model.safetensors").read_bytes()


def test_the_logged_model_loads_and_answers_like_the_checkpoint(checkout: Checkout, runs: dict[str, Run]) -> None:
    from leanresnet.models.checkpoint import load_model

    client = client_of(checkout.folder)
    (logged,) = client.search_logged_models(
        [runs["student"].info.experiment_id], f"source_run_id = '{runs['student'].info.run_id}'"
    )
    images = load_split(checkout.folder / "data/test.safetensors").images[:5]
    np.save(checkout.folder / ".work/images.npy", images.float().numpy())
    images_file, logits_file = (str(checkout.folder / ".work" / name) for name in ("images.npy", "logits.npy"))
    script = (
        f"import numpy, mlflow; model = mlflow.pyfunc.load_model({logged.artifact_location!r});"
        "assert model.metadata.signature.inputs.inputs[0].shape == (-1, 3, 32, 32);"
        f"numpy.save({logits_file!r}, model.predict(numpy.load({images_file!r})))"
    )
    done = run_code(script, cwd=checkout.folder, env=outside_environment())
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = load_model(checkout.folder / "models/student").net(images)
    np.testing.assert_allclose(np.load(logits_file), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_evaluation_records_a_training_that_mlflow_never_saw(checkout: Checkout, tmp_path: Path) -> None:
    """As after a restore from DVC's cache into a workspace with an empty database."""
    for part in ("models", "results", "data", "params.yaml"):
        source = checkout.folder / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part)
    place_database(tmp_path)
    places = ["--model", "models/baseline", "--teacher", "models/teacher", "--results", "results/baseline"]
    splits = ["--validation", "data/validation.safetensors", "--test", "data/test.safetensors"]
    for _ in range(2):
        done = run_program("evaluate", *places, *splits, cwd=tmp_path, env=outside_environment())
        assert done.returncode == 0
    client = client_of(tmp_path)
    experiment = client.get_experiment_by_name("leanresnet")
    (run,) = client.search_runs([experiment.experiment_id])
    live = runs_by_model(checkout.folder)["baseline"]
    assert run.data.tags["git.commit"] == "unknown"
    assert run.data.params == live.data.params
    unknown = {key for key in set(live.data.metrics) - set(run.data.metrics) if not key.startswith("system/")}
    assert unknown == {"images_per_second", "train_seconds"}
    assert "mlflow.source.git.commit" not in run.data.tags
    assert run.data.metrics["test/accuracy"] == live.data.metrics["test/accuracy"]
    shown = f"test {run.data.metrics['test/accuracy']:.2%}; the measurements and pictures are in results/baseline"
    assert shown in done.stderr
    assert len(client.get_metric_history(run.info.run_id, "val/accuracy")) == EPOCHS


def test_sync_logs_what_dvc_restored_once_and_no_evaluation_of_other_weights(
    checkout: Checkout, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkout.folder, folder, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".work", "src"))
    place_database(folder)
    report = folder / "results/teacher/test.json"
    report.write_text(report.read_text() + "\n")
    for said in ("0 logged, 0 left\n3 restored by DVC, logged from their outputs\n", "0 logged, 0 left\n"):
        assert run_program("sync", cwd=folder, env=outside_environment()).stdout == said
    live, restored = runs_by_model(checkout.folder), runs_by_model(folder)
    for model in MODELS:
        metrics = set(live[model].data.metrics) - set(restored[model].data.metrics)
        known = {"images_per_second", "train_seconds"}
        assert metrics >= known
        assert ("test/accuracy" in metrics) == (model == "teacher")
    assert restored["student"].data.tags["teacher.run_id"] == restored["teacher"].info.run_id
    # The evaluation that was missing is restored later.
    report.write_bytes((checkout.folder / "results/teacher/test.json").read_bytes())
    said = "0 logged, 0 left\n1 restored by DVC, logged from their outputs\n"
    assert run_program("sync", cwd=folder, env=outside_environment()).stdout == said
    assert "test/accuracy" in runs_by_model(folder)["teacher"].data.metrics


AT_ONCE = """
import os
from leanresnet.tracking import run as reporting
reporting.LAST_SECONDS = 900.0

def report():
    with reporting.start_run("r", {}, {}) as run:
        for step in range(20):
            run.log_metrics({"m": step}, step)
    os._exit(0)

children = [os.fork() or report() for _ in range(8)]
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
"""


def test_processes_share_a_fresh_database(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    done = run_code(AT_ONCE, cwd=tmp_path, env=outside_environment())
    assert (done.returncode, done.stderr) == (0, "")
    client = client_of(tmp_path)
    assert [len(client.get_metric_history(run.info.run_id, "m")) for run in runs_of(tmp_path)] == [20] * 8


MAKES_A_DATABASE = """
import itertools, os, signal
from sqlalchemy import event
from sqlalchemy.engine import Engine
from leanresnet.tracking.connection import page_addresses

statements = itertools.count(1)

@event.listens_for(Engine, "after_cursor_execute")
def die(*_):
    if next(statements) == STATEMENTS:
        os.kill(os.getpid(), signal.SIGKILL)

page_addresses()
"""


def test_a_process_killed_while_the_database_is_made_leaves_none(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    killed, healthy = (
        run_code(f"STATEMENTS = {statements}\n{MAKES_A_DATABASE}", cwd=tmp_path, env=outside_environment())
        for statements in (400, 0)
    )
    assert (killed.returncode, healthy.returncode) == (-signal.SIGKILL, 0)
    assert client_of(tmp_path).get_experiment_by_name("leanresnet") is not None


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace whose name means something in an address; a folder in it is the current one."""
    folder = tmp_path / "a%20b ?c #d @é:+"
    (folder / "results").mkdir(parents=True)
    (folder / "params.yaml").touch()
    monkeypatch.chdir(folder / "results")
    return folder


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("", "sqlite+pysqlite:///{root}/mlflow.db"),
        ("sqlite:///mlflow.db", "sqlite+pysqlite:///{root}/mlflow.db"),
        ("sqlite:///runs/all%20of%20them.db?timeout=9", "sqlite+pysqlite:///{root}/runs/all%20of%20them.db?timeout=9"),
        ("sqlite:////srv/mlflow.db", "sqlite+pysqlite:////srv/mlflow.db"),
        ("file:./mlruns", "file://{root}/mlruns"),
        ("mlruns", "file://{root}/mlruns"),
        ("file:///srv/mlruns", "file:///srv/mlruns"),
        ("http://ann@host:5000", "http://ann@host:5000"),
        (
            "postgresql+psycopg2://mlflow@host/mlflow?service=team",
            "postgresql+psycopg2://mlflow@host/mlflow?service=team",
        ),
        ("postgresql://mlflow@host/mlflow", "postgresql+psycopg2://mlflow@host/mlflow"),
        ("databricks", "databricks"),
    ],
)
def test_a_relative_address_is_of_the_workspace(
    given: str, meant: str, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking_uri() == meant.format(root=quote(str(space)))


def test_an_address_that_is_whole_needs_no_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no workspace"):
        connect()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere' / 'mlflow.db'}")
    with pytest.raises(StorageError, match="in a folder that does not exist, expected: a file for MLflow's database"):
        connect()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "elsewhere").mkdir()
    experiment = connect().get_experiment_by_name("leanresnet")
    assert experiment.artifact_location == (tmp_path / "elsewhere" / "mlartifacts").as_uri()
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ("http://[::1", ConfigError, r"^MLFLOW_TRACKING_URI = http://\[::1: Invalid IPv6 URL, expected: an address$"),
        ("127.0.0.1:5000", ConfigError, r"= 127\.0\.0\.1:5000: no address, expected: http://127\.0\.0\.1:5000$"),
        ("localhost:5000/", ConfigError, r"expected: http://localhost:5000/$"),
        ("sqlite:///", StorageError, r"/space: a folder, expected: a file for MLflow's database$"),
    ],
)
def test_what_cannot_be_an_address_is_named_at_once(
    given: str, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "space").mkdir()
    (tmp_path / "space/params.yaml").touch()
    monkeypatch.chdir(tmp_path / "space")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    with pytest.raises(error, match=said):
        connect()
    assert [path.name for path in Path().iterdir()] == ["params.yaml"]


def test_an_experiment_that_was_deleted_in_mlflow_is_named(space: Path) -> None:
    client = connect().MlflowClient()
    experiment = client.get_experiment_by_name("leanresnet").experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(
        StorageError, match=r"/mlflow\.db: the experiment leanresnet was deleted, expected: "
    ) as refused:
        connect()
    with pytest.raises(StorageError, match=rf"^{re.escape(str(refused.value))}$"):
        page_addresses()
    # The remedy works. Its `mlflow` would take ten seconds to start.
    address, program, group, *arguments = shlex.split(str(refused.value).split("`")[1])
    assert (address, program, group) == (f"MLFLOW_TRACKING_URI={tracking_uri()}", "mlflow", "experiments")
    assert CliRunner().invoke(experiments.commands, arguments).exit_code == 0
    connect()


MODEL = """
import mlflow
class Constant(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[int], params=None) -> list[str]:
        return ["WHO" for _ in model_input]
mlflow.models.set_model(Constant())
"""


def log_model_of(space: Path, who: str) -> str:
    """A run with a file, and a model that says `who` as the champion; the run's id."""
    mlflow = connect()
    client = mlflow.MlflowClient()
    (space / "model.py").write_text(MODEL.replace("WHO", who))
    (space / "who.txt").write_text(who)
    with mlflow.start_run(experiment_id=client.get_experiment_by_name("leanresnet").experiment_id) as run:
        client.log_artifact(run.info.run_id, str(space / "who.txt"), "results")
        logged = mlflow.pyfunc.log_model(
            name="model", python_model=str(space / "model.py"), pip_requirements=[], registered_model_name="who"
        )
    client.set_registered_model_alias("who", "champion", logged.registered_model_version)
    return str(run.info.run_id)


def champion_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """As a process of its own would find it that was started there."""
    monkeypatch.chdir(folder)
    # MLflow sets it for its own subprocesses.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    mlflow = connect()
    place = mlflow.MlflowClient().get_model_version_download_uri("who", "1")
    assert place.startswith((folder / "mlartifacts").as_uri() + "/")
    (said,) = mlflow.pyfunc.load_model("models:/who@champion").predict([0])
    return str(said)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore:.*(Add type hints|Any type hint is inferred)")
def test_a_copy_and_a_moved_workspace_have_their_files_with_them(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = log_model_of(space, "first")
    assert [path.name for path in space.parent.iterdir()] == [space.name]
    copy, moved = space.with_name("its copy?"), space.with_name("moved")
    shutil.copytree(space, copy)
    before = content(space)
    assert champion_says(copy, monkeypatch) == "first"
    other = log_model_of(copy, "second")
    client = connect().MlflowClient()
    texts = {Path(client.download_artifacts(each, "results/who.txt")).read_text() for each in (run, other)}
    assert texts == {"first", "second"}
    assert content(space) == before
    space.rename(moved)
    assert champion_says(moved, monkeypatch) == "first"
    assert Path(connect().MlflowClient().download_artifacts(run, "results/who.txt")).read_text() == "first"
