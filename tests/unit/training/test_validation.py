"""Measures of a trained network against scikit-learn and a count by hand."""

import pytest
import torch
from helpers import Brightness, logits_of, softmax, synthetic_split, tiny_net
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor

from leanresnet.training.loader import EvalBatches
from leanresnet.training.validation import TeacherComparison, evaluate

SPLIT = synthetic_split(53)
LABELS = SPLIT.labels.numpy()


@pytest.mark.parametrize("batch_size", [1, 16, 53, 100])
def test_loss_and_accuracy_are_means_over_the_images(batch_size: int) -> None:
    net = Brightness(0.0)
    logits = logits_of(net, SPLIT.images)
    found = evaluate(net, EvalBatches(SPLIT, batch_size))
    assert found.keys() == {"loss", "accuracy"}
    assert found["accuracy"] == accuracy_score(LABELS, logits.argmax(1))
    assert found["loss"] == pytest.approx(log_loss(LABELS, softmax(logits), labels=range(10)), rel=1e-5)
    assert 0 < found["accuracy"] < 1


def test_the_loss_of_half_precision_logits_is_that_of_float32() -> None:
    class Half(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).bfloat16()

    class Rounded(Half):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).float()

    half, rounded = (evaluate(net, EvalBatches(SPLIT, 16)) for net in (Half(0.0), Rounded(0.0)))
    assert half == rounded


def test_a_sum_is_taken_in_float64() -> None:
    def measure(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        values = torch.ones(len(images))
        values[0] = 2.0**30
        return values

    found = evaluate(tiny_net(), EvalBatches(SPLIT, 53), {"large": measure})
    assert found == {"large": (2**30 + 52) / 53}


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_runs_in_evaluation_mode_and_restores_the_callers(training: bool) -> None:
    net = tiny_net().train(training)
    modes: list[bool] = []
    net.stem.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    statistics = net.get_buffer("stem.1.running_mean").clone()
    evaluate(net, EvalBatches(SPLIT, 20))
    assert modes == [False] * 3
    assert net.training is training
    assert net.stem.training is training
    assert torch.equal(net.get_buffer("stem.1.running_mean"), statistics)


def test_evaluation_builds_no_graph() -> None:
    seen: list[bool] = []

    def measure(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(logits.requires_grad)
        return labels.float()

    evaluate(tiny_net(), EvalBatches(SPLIT, 53), {"label": measure})
    assert seen == [False]


def test_agreement_and_gap_equal_a_count_by_hand() -> None:
    student, teacher = Brightness(0.0), Brightness(0.7)
    found = evaluate(student, EvalBatches(SPLIT, 10), TeacherComparison(teacher).measures())
    said, taught = logits_of(student, SPLIT.images).argmax(1), logits_of(teacher, SPLIT.images).argmax(1)
    assert found.keys() == {"loss", "accuracy", "teacher_agreement", "teacher_gap"}
    assert found["teacher_agreement"] == pytest.approx((said == taught).mean())
    assert found["teacher_gap"] == pytest.approx((taught == LABELS).mean() - (said == LABELS).mean())
    assert found["teacher_gap"] != 0
    assert 0 < found["teacher_agreement"] < 1


def test_a_network_beside_itself_agrees_without_a_gap() -> None:
    net = Brightness(0.0)
    found = evaluate(net, EvalBatches(SPLIT, 10), TeacherComparison(net).measures())
    assert (found["teacher_agreement"], found["teacher_gap"]) == (1.0, 0.0)


def test_the_teacher_runs_once_on_each_batch_of_all_epochs() -> None:
    student, teacher = Brightness(0.0), Brightness(0.7)
    measures = TeacherComparison(teacher).measures()
    batches = EvalBatches(SPLIT, 10)
    first = evaluate(student, batches, measures)
    assert len(teacher.batches) == 6
    assert all(taught is seen for taught, seen in zip(teacher.batches, student.batches, strict=True))
    assert evaluate(student, batches, measures) == first
    assert len(teacher.batches) == 6


def test_the_teacher_runs_on_other_images_wherever_they_lie() -> None:
    """Images that are freed make room for others at the same place."""
    student, teacher = Brightness(0.0), Brightness(0.7)
    measures = TeacherComparison(teacher).measures()
    for seed in range(5):
        other = synthetic_split(20, seed)
        found = evaluate(student, EvalBatches(other, 10), measures)
        assert found == evaluate(student, EvalBatches(other, 10), TeacherComparison(Brightness(0.7)).measures())
        student.batches.clear()
        teacher.batches.clear()


def test_the_teacher_is_put_into_evaluation_mode() -> None:
    teacher = tiny_net().train()
    TeacherComparison(teacher)
    assert not any(module.training for module in teacher.modules())
