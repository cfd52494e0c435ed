"""What `sync` takes for a model that DVC restored."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from leanresnet.analysis import backfill
from leanresnet.analysis.backfill import _models
from leanresnet.evaluation.report import report_files
from leanresnet.files import file_hashes, save_text
from leanresnet.training.results import Outputs


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    made = Outputs(tmp_path / "models/baseline", tmp_path / "results/baseline")
    for path in [*made.files(), *report_files(made)]:
        save_text(path.name, path)
    return made


def lock(root: Path, outputs: Outputs, unlisted: str = "") -> None:
    """dvc.lock of a training and its evaluation, which lists all that they made but one file."""

    def entries(paths: list[Path]) -> list[dict[str, str]]:
        return [{"path": path.relative_to(root).as_posix(), "md5": file_hashes(path)[0]} for path in paths]

    made = [path for path in outputs.files() if path.name != unlisted]
    measured = [path for path in report_files(outputs) if path.name != unlisted]
    stages = {"train": {"outs": entries(made)}, "evaluate": {"deps": entries(made), "outs": entries(measured)}}
    save_text(yaml.safe_dump({"schema": "2.0", "stages": stages}), root / "dvc.lock")


def test_a_model_and_its_evaluation_lie_there_as_the_lock_has_them(outputs: Outputs, tmp_path: Path) -> None:
    lock(tmp_path, outputs)
    assert list(_models(tmp_path)) == [(outputs, True)]
    (outputs.results / "test.json").write_text("another one")
    assert list(_models(tmp_path)) == [(outputs, False)]
    outputs.summary.write_text("another one")
    assert list(_models(tmp_path)) == []


@pytest.mark.parametrize(("in_journal", "logged"), [(True, 0), (False, 1)])
def test_a_training_that_mlflow_will_receive_is_not_taken_for_a_restored_one(
    in_journal: bool, logged: int, outputs: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of the same weights and another name is another training."""
    asked: list[tuple[str, str]] = []
    model = SimpleNamespace(about={"name": "baseline"}, sha256="0")
    monkeypatch.setattr(backfill, "load_model", lambda folder: model)
    monkeypatch.setattr(backfill, "training_of", lambda weights: "journal" if in_journal else None)
    monkeypatch.setattr(backfill.runs, "find_run_of_weights", lambda sha256, name: asked.append((name, sha256)))
    monkeypatch.setattr(backfill, "run_for_outputs", lambda *_: nullcontext())
    monkeypatch.setattr(backfill, "log_report", lambda *_: None)
    lock(tmp_path, outputs)
    assert backfill.log_restored(tmp_path) == logged
    assert asked == [("baseline", "0")] * logged


@pytest.mark.parametrize("name", ["model.json", "history.csv", "curves.png"])
def test_a_file_that_the_lock_does_not_know_is_not_logged_with_a_model(
    name: str, outputs: Outputs, tmp_path: Path
) -> None:
    lock(tmp_path, outputs, unlisted=name)
    assert list(_models(tmp_path)) == []


@pytest.mark.parametrize("name", ["test.json", "speed.json", "confusion.csv", "confusion.png", "mistakes.png"])
def test_nor_with_an_evaluation(name: str, outputs: Outputs, tmp_path: Path) -> None:
    lock(tmp_path, outputs, unlisted=name)
    assert list(_models(tmp_path)) == [(outputs, False)]
