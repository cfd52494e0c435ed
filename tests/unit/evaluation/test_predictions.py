"""What a network says of each image against scikit-learn, numpy and slow loops."""

import numpy as np
import pytest
import torch
from helpers import Brightness, logits_of, random_images, softmax, synthetic_split, tiny_net
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from leanresnet.evaluation.predictions import Predictions, measure_speed, predict
from leanresnet.training.loader import EvalBatches
from leanresnet.training.validation import TeacherComparison, evaluate

SPLIT = synthetic_split(53)
LABELS = SPLIT.labels.numpy()


def test_predictions_are_probabilities_in_the_order_of_the_images() -> None:
    net = Brightness(0.0)
    predictions = predict(net, EvalBatches(SPLIT, 10))
    np.testing.assert_allclose(predictions.probabilities, softmax(logits_of(net, SPLIT.images)), rtol=1e-4, atol=1e-6)
    assert torch.equal(predictions.labels, SPLIT.labels)
    assert np.array_equal(predictions.chosen, logits_of(net, SPLIT.images).argmax(1))


def test_predictions_come_from_evaluation_mode() -> None:
    net = tiny_net().train()
    np.testing.assert_allclose(
        predict(net, EvalBatches(SPLIT, 7)).probabilities, softmax(logits_of(net, SPLIT.images)), rtol=1e-3
    )


def test_the_confusion_matrix_has_a_row_for_each_true_class() -> None:
    predictions = predict(Brightness(0.0), EvalBatches(SPLIT, 10))
    expected = confusion_matrix(LABELS, predictions.chosen, labels=range(10))
    assert np.array_equal(predictions.confusion(), expected)
    assert not np.array_equal(expected, expected.T)


def test_classes_that_do_not_occur_still_have_a_row_and_a_column() -> None:
    predictions = Predictions(torch.eye(4)[[1, 1, 2]], torch.tensor([0, 1, 1]))
    assert predictions.confusion().tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def slow_calibration_error(predictions: Predictions, bins: int) -> float:
    confidence, chosen = (values.numpy() for values in predictions.probabilities.double().max(1))
    error = 0.0
    for number in range(bins):
        inside = (confidence >= number / bins) & ((confidence < (number + 1) / bins) | (number == bins - 1))
        if inside.any():
            right = (chosen == predictions.labels.numpy())[inside].mean()
            error += inside.mean() * abs(right - confidence[inside].mean())
    return error


@pytest.mark.parametrize("bins", [2, 7, 15])
def test_the_calibration_error_equals_a_slow_count(bins: int) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(400, 10, generator=generator)).softmax(1)
    predictions = Predictions(probabilities, torch.randint(10, (400,), generator=generator))
    assert predictions.calibration_error(bins) == pytest.approx(slow_calibration_error(predictions, bins), abs=1e-6)


def test_the_calibration_error_of_four_answers() -> None:
    """In ten bins: 0.95 and 0.91 share one, of which one is right; 0.75 is right; 0.55 is wrong."""
    confidence = torch.tensor([0.95, 0.91, 0.75, 0.55])
    predictions = Predictions(torch.stack([confidence, 1 - confidence], 1), torch.tensor([0, 1, 0, 1]))
    by_hand = 0.5 * abs(0.5 - 0.93) + 0.25 * (1 - 0.75) + 0.25 * 0.55
    assert predictions.calibration_error(10) == pytest.approx(by_hand, abs=1e-6)


def test_full_confidence_belongs_to_the_last_bin() -> None:
    sure = Predictions(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 0]))
    assert sure.calibration_error(15) == pytest.approx(0.25)


def test_mistakes_come_most_confident_first() -> None:
    confidence = torch.tensor([0.6, 0.9, 0.99, 0.8, 0.9, 0.7])
    predictions = Predictions(torch.stack([confidence, 1 - confidence], 1), torch.tensor([1, 1, 0, 1, 1, 0]))
    assert predictions.mistakes(10).tolist() == [1, 4, 3, 0]
    assert predictions.mistakes(2).tolist() == [1, 4]


def test_no_mistakes_where_every_answer_is_right() -> None:
    assert Predictions(torch.eye(3), torch.arange(3)).mistakes(5).tolist() == []


def test_predictions_give_the_same_metrics_as_a_pass_over_the_images() -> None:
    student, teacher = Brightness(0.0), Brightness(0.7)
    batches = EvalBatches(SPLIT, 10)
    found = predict(student, batches).metrics(predict(teacher, batches))
    assert found == pytest.approx(evaluate(student, batches, TeacherComparison(teacher).measures()), rel=1e-6)


def test_a_probability_of_zero_has_a_finite_loss() -> None:
    wrong = Predictions(torch.eye(2), torch.tensor([1, 0]))
    assert 50 < wrong.metrics(wrong)["loss"] < 100


def test_speed_is_measured_on_one_image_and_on_the_batch() -> None:
    net = Brightness(0.0)
    speed = measure_speed(net, random_images(4), repeats=3)
    assert speed.keys() == {"latency_ms", "throughput"}
    assert all(value > 0 for value in speed.values())
    assert [len(images) for images in net.batches] == [1] * 5 + [4] * 5


def test_the_median_leaves_out_two_passes_of_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [100.0, 100.0, 1.0, 2.0, 3.0, 100.0, 100.0, 5.0, 4.0, 16.0]
    clock = iter([reading for length in seconds for reading in (0.0, length)])
    monkeypatch.setattr("leanresnet.evaluation.predictions.time.perf_counter", lambda: next(clock))
    speed = measure_speed(Brightness(0.0), random_images(4), repeats=3)
    assert speed == {"latency_ms": 2000.0, "throughput": 4 / 5.0}


class Half(nn.Module):
    """A network in half precision, as under autocast, which notes its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return (images.flatten(1)[:, :10].float() / 100).half()


def test_probabilities_of_logits_in_half_precision_are_float32() -> None:
    found = predict(Half(), EvalBatches(SPLIT, 10)).probabilities
    logits = (SPLIT.images.flatten(1)[:, :10].float() / 100).half().float()
    assert torch.equal(found, logits.softmax(1))


def test_speed_is_measured_in_evaluation_mode() -> None:
    net = Half().train()
    measure_speed(net, random_images(4), repeats=1)
    assert not any(net.modes)
