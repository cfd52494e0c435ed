"""The report of an evaluation, and how it reaches the model's run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import logits_of, synthetic_split, tiny_model, tiny_net
from torch.nn import functional as F

from leanresnet.config.schema import Evaluate
from leanresnet.data.splits import save_split
from leanresnet.errors import DataError, StorageError
from leanresnet.evaluation import report
from leanresnet.evaluation.predictions import predict
from leanresnet.evaluation.report import accuracy_by_class
from leanresnet.files import file_hashes, save_csv
from leanresnet.models import checkpoint
from leanresnet.tracking import log_outputs
from leanresnet.training.loader import EvalBatches
from leanresnet.training.results import Outputs

CPU = torch.device("cpu")


def test_each_model_is_loaded_once_and_each_picture_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    monkeypatch.setattr(report, "save_figure", lambda figure, _: titles.append(figure.get_suptitle()))
    held_out, test = tmp_path / "validation.safetensors", tmp_path / "test.safetensors"
    for seed, file in enumerate((held_out, test)):
        save_split(synthetic_split(20, seed), file)
    origin = {"name": "baseline", "stage": "train@baseline", "dataset": "synthetic", "teacher_sha256": None}
    digests = {"train_md5": "0" * 32, "validation_md5": file_hashes(held_out)[0]}
    params = {"params": {"optimizer.name": "sgd", "epochs": 1, "seed": 0}}
    for seed, name in enumerate(("model", "teacher")):
        weights = tiny_net(seed).state_dict()
        classes = synthetic_split().classes
        checkpoint.save_model(weights, tiny_model(), classes, {**origin, **digests, **params}, tmp_path / name)
    outputs = Outputs(tmp_path / "model", tmp_path / "results" / "student")
    outputs.results.mkdir(parents=True)
    outputs.history.write_text("epoch,val/accuracy\n1,0.5\n")
    loaded: list[Path] = []
    read = checkpoint.load_file

    def noted(path: Path) -> object:
        loaded.append(path.parent)
        return read(path)

    class Run:
        def __getattr__(self, name: str) -> object:
            return lambda *_, **__: None

        @contextmanager
        def only_if_new(self) -> Iterator[None]:
            yield

    @contextmanager
    def add_to_run(*_: object) -> Iterator[Run]:
        yield Run()

    monkeypatch.setattr(checkpoint, "load_file", noted)
    monkeypatch.setattr(log_outputs.reporting, "add_to_run", add_to_run)
    monkeypatch.setattr(log_outputs, "log_training", lambda *_: None)
    settings = Evaluate(batch_size=20, calibration_bins=5, mistakes=4, timing_repeats=3)
    evaluated = report.write_report(settings, outputs, tmp_path / "teacher", held_out, test, CPU)
    log_outputs.log_evaluation(evaluated, outputs, CPU, test, {})
    assert loaded == [tmp_path / "model", tmp_path / "teacher"]
    assert titles == ["student", "student"]


def test_the_report_has_the_figures_of_each_split_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"validation": synthetic_split(30, seed=1), "test": synthetic_split(50, seed=2)}
    for name, split in splits.items():
        save_split(split, tmp_path / name)
    origin = {"name": "baseline", "stage": "train@baseline", "dataset": "synthetic", "teacher_sha256": None}
    digests = {"train_md5": "0" * 32, "validation_md5": file_hashes(tmp_path / "validation")[0]}
    params = {"params": {"optimizer.name": "sgd", "epochs": 1, "seed": 0}}
    net = tiny_net(3)
    about = {**origin, **digests, **params}
    checkpoint.save_model(net.state_dict(), tiny_model(), splits["test"].classes, about, tmp_path / "model")
    exact: list[bool] = []
    monkeypatch.setattr(report, "exact_float32", lambda: entered(exact))
    measured: list[tuple[int, int]] = []
    shown: list[int] = []
    draw = report.figures.mistakes
    monkeypatch.setattr(report.figures, "mistakes", lambda *given: shown.append(given[-1]) or draw(*given))
    measure = report.measure_speed
    monkeypatch.setattr(
        report, "measure_speed", lambda net, images, n: measured.append((len(images), n)) or measure(net, images, n)
    )
    outputs = Outputs(tmp_path / "model", tmp_path / "results")
    settings = Evaluate(batch_size=20, calibration_bins=3, mistakes=4, timing_repeats=5)
    splits_of = [tmp_path / name for name in splits]
    with pytest.raises(StorageError, match=r"results/history\.csv: cannot be read"):
        report.write_report(settings, outputs, tmp_path / "model", *splits_of, CPU)
    assert not outputs.results.exists()
    outputs.results.mkdir()
    outputs.history.write_text("epoch,val/accuracy\n1,0.5\n")
    report.write_report(settings, outputs, tmp_path / "model", *splits_of, CPU)
    found = report.load_report(outputs.results).model_dump(by_alias=True)
    for name, key in (("validation", "val/evaluated_"), ("test", "test/")):
        logits, labels = logits_of(net, splits[name].images), splits[name].labels
        chosen = logits.argmax(1)
        assert found[f"{key}accuracy"] == pytest.approx(float((chosen == labels.numpy()).mean()))
        assert found[f"{key}loss"] == pytest.approx(float(F.cross_entropy(torch.from_numpy(logits), labels)), rel=1e-5)
    classes = splits["test"].classes
    expected = [(classes[true], classes[place]) for true, place in zip(labels.tolist(), chosen, strict=True)]
    assert report.read_predictions(outputs.results / "confusion.csv") == expected
    predictions = predict(net, EvalBatches(splits["test"], 20))
    assert found["test/calibration_error"] == pytest.approx(predictions.calibration_error(3))
    assert (exact, measured, shown) == ([True], [(20, 5)], [4])


@contextmanager
def entered(noted: list[bool]) -> Iterator[None]:
    noted.append(True)
    yield


def test_the_accuracy_of_each_class_is_its_share_of_right_predictions(tmp_path: Path) -> None:
    rows = [["cat", "cat"], ["cat", "dog"], ["dog", "dog"], ["cat", "cat"], ["owl", "cat"], ["cat", "owl"]]
    save_csv(["true", "predicted"], rows, tmp_path / "confusion.csv")
    assert accuracy_by_class(tmp_path) == {"cat": 0.5, "dog": 1.0, "owl": 0.0}


@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", b"true,predicted\n\xff,cat\n", b'true,predicted\n"' + b"x" * 200_000]
)
def test_another_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "confusion.csv").write_bytes(content)
    with pytest.raises(DataError, match="not a table of predictions, expected: the columns true and predicted"):
        accuracy_by_class(tmp_path)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"confusion\.csv: cannot be read"):
        accuracy_by_class(tmp_path)
