"""The losses against formulas by hand, in float64."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import random_images, tiny_net
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.training.losses import CrossEntropy, DistillationLoss, attention_distance, decoupled

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.tensor([3, 1, 9, 0, 3, 7])
LOGITS = 3 * torch.randn(6, 10, generator=GENERATOR)
TAUGHT = 3 * torch.randn(6, 10, generator=GENERATOR)
INPUTS = random_images(6)


class Answers(nn.Module):
    """A teacher that says the same whatever it sees."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return self.logits * 1


def said(logits: Tensor) -> Callable[[Tensor], Tensor]:
    """A network that answers with `logits`."""
    return lambda images: logits


def log_softmax(logits: Tensor) -> np.ndarray:
    values = logits.double().numpy()
    return values - np.log(np.exp(values).sum(1, keepdims=True))


def smoothed_cross_entropy(logits: Tensor, smoothing: float) -> float:
    """Targets hold 1 - s for the label and s / 10 spread over all ten classes."""
    target = np.full((6, 10), smoothing / 10)
    target[range(6), LABELS] += 1 - smoothing
    return float(-(target * log_softmax(logits)).sum(1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_with_label_smoothing(smoothing: float) -> None:
    loss = CrossEntropy(smoothing).of(LOGITS, LABELS)
    assert float(loss) == pytest.approx(smoothed_cross_entropy(LOGITS, smoothing), rel=1e-5)


def test_half_precision_logits_are_summed_in_float32() -> None:
    loss = CrossEntropy(0.1).of(LOGITS.bfloat16(), LABELS)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(smoothed_cross_entropy(LOGITS.bfloat16(), 0.1), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_distillation_follows_its_formula(alpha: float, temperature: float, smoothing: float) -> None:
    teacher, student = (log_softmax(logits.double() / temperature) for logits in (TAUGHT, LOGITS))
    divergence = (np.exp(teacher) * (teacher - student)).sum(1).mean()
    expected = (1 - alpha) * smoothed_cross_entropy(LOGITS, smoothing) + alpha * temperature**2 * divergence
    loss = DistillationLoss(Answers(TAUGHT), alpha, temperature, None, smoothing)(said(LOGITS), INPUTS, LABELS)[0]
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [0.5, 8.0])
def test_decoupled_distillation_follows_its_formula(beta: float) -> None:
    """Equation 7 of the paper, an image at a time."""
    teacher, student = (np.exp(log_softmax(logits.double() / 4)) for logits in (TAUGHT, LOGITS))
    found = []
    for p, q, label in zip(teacher, student, LABELS.tolist(), strict=True):
        certainty = p[label] * np.log(p[label] / q[label]) + (1 - p[label]) * np.log((1 - p[label]) / (1 - q[label]))
        among, others = (np.delete(each, label) / (1 - each[label]) for each in (p, q))
        found.append(certainty + beta * (among * np.log(among / others)).sum())
    expected = 0.1 * smoothed_cross_entropy(LOGITS, 0.1) + 0.9 * 16 * np.mean(found)
    criterion = DistillationLoss(Answers(TAUGHT), 0.9, 4.0, beta, 0.1)
    assert float(criterion(said(LOGITS), INPUTS, LABELS)[0]) == pytest.approx(expected, rel=1e-5)
    shares = 0.6 * torch.eye(10)[LABELS] + 0.4 * torch.eye(10)[(LABELS + 1) % 10]
    mixed = DistillationLoss(Answers(TAUGHT), 1.0, 4.0, beta, 0.0)(said(LOGITS), INPUTS, shares)[0]
    assert float(mixed) == pytest.approx(16 * np.mean(found), rel=1e-5)


def test_a_beta_of_the_teachers_doubt_is_the_plain_divergence() -> None:
    student, teacher = LOGITS[:1].log_softmax(1), TAUGHT[:1].log_softmax(1)
    doubt = 1 - float(teacher[0, LABELS[0]].exp())
    plain = (teacher.exp() * (teacher - student)).sum()
    torch.testing.assert_close(decoupled(student, teacher, LABELS[:1], doubt), plain)


def test_decoupled_distillation_of_a_teacher_without_doubt_is_finite() -> None:
    sure = torch.full((6, 10), -60.0).scatter(1, LABELS[:, None], 60.0)
    logits = LOGITS.clone().requires_grad_()
    loss = DistillationLoss(Answers(sure), 1.0, 1.0, 8.0, 0.0)(said(logits), INPUTS, LABELS)[0]
    loss.backward()
    assert logits.grad is not None
    assert bool(loss.isfinite())
    assert bool(logits.grad.isfinite().all())


def test_half_precision_logits_of_both_networks_are_compared_in_float32() -> None:
    half, taught = LOGITS.bfloat16(), TAUGHT.bfloat16()
    for beta in (None, 4.0):
        loss = DistillationLoss(Answers(taught), 1.0, 4.0, beta, 0.0)(said(half), INPUTS, LABELS)[0]
        exact = DistillationLoss(Answers(taught.float()), 1.0, 4.0, beta, 0.0)(said(half.float()), INPUTS, LABELS)[0]
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact, atol=0, rtol=0)


def test_half_precision_maps_are_compared_in_float32() -> None:
    maps, taught = ([random_images(4, seed).bfloat16()] for seed in (1, 2))
    exact = attention_distance([maps[0].float()], [taught[0].float()])
    torch.testing.assert_close(attention_distance(maps, taught), exact, atol=0, rtol=0)


def test_a_right_class_of_any_size_counts_nothing_among_the_wrong_ones() -> None:
    """Both say the same of the wrong classes, so the weight of these does not matter."""
    student, teacher = torch.zeros(6, 10), torch.zeros(6, 10)
    student[range(6), LABELS] = 12.0
    student, teacher = (F.log_softmax(each, 1) for each in (student, teacher))
    with_them, without = (float(decoupled(student, teacher, LABELS, beta)) for beta in (8.0, 0.0))
    assert without > 1
    assert with_them == pytest.approx(without, abs=1e-4)


def test_alpha_0_is_cross_entropy() -> None:
    loss = DistillationLoss(Answers(TAUGHT), 0.0, 4.0, None, 0.1)(said(LOGITS), INPUTS, LABELS)[0]
    assert float(loss) == float(CrossEntropy(0.1).of(LOGITS, LABELS))


def test_alpha_1_is_0_for_a_student_that_equals_its_teacher() -> None:
    loss = DistillationLoss(Answers(LOGITS), 1.0, 4.0, None, 0.1)(said(LOGITS), INPUTS, LABELS)[0]
    assert float(loss) == pytest.approx(0, abs=1e-6)


def test_alpha_1_ignores_the_labels() -> None:
    criterion = DistillationLoss(Answers(TAUGHT), 1.0, 4.0, None, 0.1)
    assert float(criterion(said(LOGITS), INPUTS, LABELS)[0]) == float(
        criterion(said(LOGITS), INPUTS, (LABELS + 1) % 10)[0]
    )


def gradient(alpha: float, temperature: float) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    DistillationLoss(Answers(TAUGHT), alpha, temperature, None, 0.0)(said(logits), INPUTS, LABELS)[0].backward()
    assert logits.grad is not None
    return logits.grad


def test_the_gradient_keeps_its_size_when_the_temperature_changes() -> None:
    sizes = [float(gradient(1.0, temperature).norm()) for temperature in (2.0, 4.0, 8.0, 16.0)]
    # Without the factor T^2 the last would be about a 64th of the first.
    assert max(sizes) / min(sizes) < 3


def test_the_gradient_tends_to_the_difference_of_the_logits() -> None:
    """Hinton et al., section 2.1: T^2 dC/dz is (z - v) / N for a high T and centred logits; here a mean over images."""
    difference = (LOGITS - LOGITS.mean(1, keepdim=True)) - (TAUGHT - TAUGHT.mean(1, keepdim=True))
    torch.testing.assert_close(gradient(1.0, 1000.0), difference / 10 / 6, atol=2e-3, rtol=0)


def test_the_teacher_sees_the_students_images() -> None:
    teacher = Answers(TAUGHT)
    DistillationLoss(teacher, 0.5, 4.0, None, 0.0)(said(LOGITS), INPUTS, LABELS)[0]
    assert [seen is INPUTS for seen in teacher.seen] == [True]


def test_the_teacher_gets_no_gradient_and_does_not_change() -> None:
    teacher = tiny_net(seed=1).train()
    before = copy.deepcopy(teacher.state_dict())
    criterion = DistillationLoss(teacher, 0.9, 4.0, None, 0.0)
    student = tiny_net(seed=2).train()
    for _ in range(2):
        criterion(student, INPUTS, LABELS)[0].backward()
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_loss_hands_on_the_networks_answers() -> None:
    net = tiny_net()
    for criterion in (CrossEntropy(0.1), DistillationLoss(Answers(TAUGHT), 0.5, 4.0, None, 0.1)):
        assert torch.equal(criterion(net, INPUTS, LABELS)[1], net(INPUTS))


def test_attention_distance_equals_a_count_by_hand() -> None:
    student = [torch.randn(6, 4, side, side, generator=GENERATOR) for side in (8, 4)]
    teacher = [torch.randn(6, 7, side, side, generator=GENERATOR) for side in (16, 8, 4)]
    expected = 0.0
    for own, other in zip(student, teacher[1:], strict=True):
        for mine, theirs in zip(own.double().numpy(), other.double().numpy(), strict=True):
            first, second = (np.square(each).mean(0).ravel() for each in (mine, theirs))
            expected += np.square(first / np.linalg.norm(first) - second / np.linalg.norm(second)).sum() / 6
    assert float(attention_distance(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_attention_is_blind_to_scale_and_sign_and_the_order_of_channels() -> None:
    maps = [torch.randn(6, 4, 8, 8, generator=GENERATOR)]
    assert float(attention_distance(maps, [-3 * maps[0].flip(1)])) == pytest.approx(0, abs=1e-6)


def test_attention_is_added_with_its_weight() -> None:
    student, teacher = tiny_net(seed=2).eval(), tiny_net(seed=1, channels=(16, 16))
    plain = DistillationLoss(teacher, 0.9, 4.0, None, 0.0)(student, INPUTS, LABELS)[0]
    criterion = DistillationLoss(teacher, 0.9, 4.0, None, 0.0, attention=2.5)
    loss, logits = criterion(student, INPUTS, LABELS)
    distance = attention_distance(student.forward_features(INPUTS)[0], teacher.forward_features(INPUTS)[0])
    assert distance.item() > 0.01
    torch.testing.assert_close(loss, plain + 2.5 * distance)
    torch.testing.assert_close(logits, student(INPUTS))
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
