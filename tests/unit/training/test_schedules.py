"""Every schedule against its closed form."""

import math
import warnings
from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from helpers import optimizer_settings, schedule_settings, tiny_net

from leanresnet.config.schema import Schedule
from leanresnet.training.optimizers import build_optimizer
from leanresnet.training.schedules import LearningRate, build_schedule

PEAK, EPOCHS, STEPS = 0.8, 8, 5


def schedule_of(
    settings: Schedule, optimizer: str = "sgd", epochs: int = EPOCHS
) -> tuple[torch.optim.Optimizer, LearningRate]:
    """A schedule over 8 epochs of 5 steps from a learning rate of 0.8."""
    built = build_optimizer(tiny_net(), optimizer_settings(name=optimizer, lr=PEAK))
    return built, build_schedule(built, settings, epochs, STEPS)


def rates(settings: Schedule, val_losses: Sequence[float] = ()) -> list[float]:
    """The learning rate of each of the 40 steps."""
    optimizer, schedule = schedule_of(settings)
    found = []
    for epoch in range(EPOCHS):
        for _ in range(STEPS):
            found.append(schedule.value)
            assert {group["lr"] for group in optimizer.param_groups} == {schedule.value}
            optimizer.step()
            schedule.step()
        schedule.end_epoch(val_losses[epoch] if val_losses else 1.0 - epoch / 100)
    return found


def warmed_up(by_hand: list[float], warmup: int) -> list[float]:
    """The same behind a rise of `warmup` equal stairs, of which the peak would be the next."""
    return [PEAK * (step + 1) / (warmup + 1) for step in range(warmup)] + by_hand[: EPOCHS * STEPS - warmup]


NAMES = get_args(Schedule.model_fields["name"].annotation)
# Every kind of change falls into 8 epochs, before and after the fourth.
EVENTFUL = {"step_epochs": 1, "milestones": (2, 5), "patience": 0, "restart_epochs": 1, "final_ratio": 0.01}
WARMUPS = pytest.mark.parametrize(("warmup_epochs", "warmup"), [(0, 0), (0.2, 1), (2, 10), (2.5, 12)])


@WARMUPS
def test_constant(warmup_epochs: float, warmup: int) -> None:
    found = rates(schedule_settings(name="constant", warmup_epochs=warmup_epochs))
    assert found == pytest.approx(warmed_up([PEAK] * 40, warmup))


@WARMUPS
def test_step_counts_its_epochs_after_the_warmup(warmup_epochs: float, warmup: int) -> None:
    found = rates(schedule_settings(name="step", warmup_epochs=warmup_epochs, step_epochs=2, factor=0.5))
    assert found == pytest.approx(warmed_up([PEAK * 0.5 ** (step // 10) for step in range(40)], warmup))


@WARMUPS
def test_multistep_reduces_at_its_epochs_whatever_the_warmup(warmup_epochs: float, warmup: int) -> None:
    found = rates(schedule_settings(name="multistep", warmup_epochs=warmup_epochs, milestones=(3, 5), factor=0.1))
    by_hand = [PEAK * 0.1 ** ((step >= 15) + (step >= 25)) for step in range(40)]
    assert found == pytest.approx(warmed_up(by_hand, warmup)[:warmup] + by_hand[warmup:])


def cosine_with_restarts(floor: float, first: int, mult: int) -> list[float]:
    found: list[float] = []
    period = first
    while len(found) < 40:
        found += [floor + (PEAK - floor) * (1 + math.cos(math.pi * step / period)) / 2 for step in range(period)]
        period *= mult
    return found[:40]


@WARMUPS
@pytest.mark.parametrize(("restart_epochs", "mult"), [(1, 2), (2, 1), (2, 3), (20, 1)])
@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_cosine_with_warm_restarts(
    warmup_epochs: float, warmup: int, restart_epochs: int, mult: int, ratio: float
) -> None:
    settings = schedule_settings(
        name="cosine_restarts",
        warmup_epochs=warmup_epochs,
        final_ratio=ratio,
        restart_epochs=restart_epochs,
        restart_mult=mult,
    )
    assert rates(settings) == pytest.approx(
        warmed_up(cosine_with_restarts(PEAK * ratio, 5 * restart_epochs, mult), warmup)
    )


@WARMUPS
@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_cosine_falls_to_its_floor_at_the_end(warmup_epochs: float, warmup: int, ratio: float) -> None:
    found = rates(schedule_settings(name="cosine", warmup_epochs=warmup_epochs, final_ratio=ratio))
    assert found == pytest.approx(warmed_up(cosine_with_restarts(PEAK * ratio, 40 - warmup, 1), warmup), abs=1e-9)


@WARMUPS
def test_linear_falls_in_a_straight_line_to_its_floor(warmup_epochs: float, warmup: int) -> None:
    found = rates(schedule_settings(name="linear", warmup_epochs=warmup_epochs, final_ratio=0.1))
    length = len(found) - warmup
    assert found == pytest.approx(warmed_up([PEAK * (1 - 0.9 * step / length) for step in range(40)], warmup))


@WARMUPS
def test_plateau_without_stagnation_stays_at_the_peak(warmup_epochs: float, warmup: int) -> None:
    found = rates(schedule_settings(name="plateau", warmup_epochs=warmup_epochs, patience=0))
    assert found == pytest.approx(warmed_up([PEAK] * 40, warmup))


def test_plateau_reduces_after_its_patience_and_ends_at_its_floor() -> None:
    settings = schedule_settings(name="plateau", warmup_epochs=1, patience=1, factor=0.1, final_ratio=0.05)
    # The third and fourth epoch do not improve on the second: the fifth is slower. So again, down to the floor.
    found = rates(settings, [1.0, 0.5, 0.6, 0.5, 0.4, 0.4, 0.4, 0.4])
    assert found[:5] == pytest.approx([PEAK * (step + 1) / 6 for step in range(5)])
    assert found[5:20] == pytest.approx([PEAK] * 15)
    assert found[20:35] == pytest.approx([PEAK * 0.1] * 15)
    assert found[35:] == pytest.approx([PEAK * 0.05] * 5)


def test_plateau_keeps_the_ratio_of_the_learning_rates_down_to_the_floor() -> None:
    settings = schedule_settings(name="plateau", warmup_epochs=0, patience=0, factor=0.1, final_ratio=0.05)
    optimizer = build_optimizer(tiny_net(), optimizer_settings(name="sgd", lr=PEAK, bias_lr_ratio=64.0))
    schedule = build_schedule(optimizer, settings, EPOCHS, STEPS)
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            optimizer.step()
            schedule.step()
        schedule.end_epoch(1.0)
        ratios = [group["lr"] / schedule.value for group in optimizer.param_groups]
        assert ratios == pytest.approx([group.get("lr_ratio", 1.0) for group in optimizer.param_groups])
        assert max(ratios) == pytest.approx(64)
    assert schedule.value == pytest.approx(PEAK * 0.05)


@pytest.mark.parametrize(("warmup_epochs", "warmup"), [(4, 20), (4.2, 21), (4.8, 24)])
def test_plateau_counts_no_epoch_of_the_warmup(warmup_epochs: float, warmup: int) -> None:
    """In which the loss only rises; the first epoch that ends after it is what later ones have to improve on."""
    settings = schedule_settings(name="plateau", warmup_epochs=warmup_epochs, patience=0, factor=0.5, final_ratio=0.0)
    found = rates(settings, [2.0, 2.1, 2.2, 2.3, 5.0, 4.0, 4.5, 1.0])
    assert found == pytest.approx(warmed_up([PEAK] * (35 - warmup) + [PEAK / 2] * 5, warmup))


def one_cycle(rise: int, ratio: float) -> list[float]:
    """Cosine halves: 1/25 of the peak up to the peak at step `rise`, down to `ratio` of it after the 40th."""

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    up = [between(PEAK / 25, PEAK, step / rise) for step in range(rise)]
    return up + [between(PEAK, PEAK * ratio, (step - rise) / (40 - rise)) for step in range(rise, 40)]


@pytest.mark.parametrize("ratio", [0.001, 0.2, 1.0])
@pytest.mark.parametrize(("warmup_epochs", "rise"), [(0, 1), (0.2, 1), (0.4, 1), (2, 9), (7.9, 39)])
def test_one_cycle(warmup_epochs: float, rise: int, ratio: float) -> None:
    optimizer, schedule = schedule_of(
        schedule_settings(name="onecycle", warmup_epochs=warmup_epochs, final_ratio=ratio)
    )
    found = []
    for _ in range(40):
        found.append(schedule.value)
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(one_cycle(rise, ratio), abs=1e-9)
    assert found[0] == pytest.approx(PEAK / 25)
    assert found[rise] == max(found) == pytest.approx(PEAK)
    assert schedule.value == pytest.approx(PEAK * ratio)


def test_one_cycle_of_a_single_step() -> None:
    optimizer = build_optimizer(tiny_net(), optimizer_settings(lr=PEAK))
    schedule = build_schedule(optimizer, schedule_settings(name="onecycle", warmup_epochs=0), epochs=1, steps=1)
    assert schedule.value == pytest.approx(PEAK / 25)
    optimizer.step()
    schedule.step()


def test_one_cycle_leaves_the_momentum_alone() -> None:
    optimizer, schedule = schedule_of(schedule_settings(name="onecycle"))
    optimizer.step()
    schedule.step()
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


@WARMUPS
@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_of_more_epochs_goes_on_where_that_of_fewer_ended(
    name: str, warmup_epochs: float, warmup: int
) -> None:
    """With exactly the learning rates that it has when it began itself."""
    settings, losses = schedule_settings(name=name, warmup_epochs=warmup_epochs, **EVENTFUL), [1, 2, 2, 2, 2, 1, 1, 2]
    expected = rates(settings, losses)
    shorter, ended = schedule_of(settings, epochs=EPOCHS // 2)
    for loss in losses[: EPOCHS // 2]:
        for _ in range(STEPS):
            ended.step()
        ended.end_epoch(loss)
    longer, schedule = schedule_of(settings)
    longer.load_state_dict(shorter.state_dict())
    schedule.load_state_dict(ended.state_dict())
    found = []
    for loss in losses[EPOCHS // 2 :]:
        for _ in range(STEPS):
            found.append(schedule.value)
            schedule.step()
        schedule.end_epoch(loss)
    assert found == expected[len(found) :]


def test_after_its_last_step_a_learning_rate_stays() -> None:
    """As where a batch that fits into memory is looked for after it."""
    for name in NAMES:
        _, schedule = schedule_of(schedule_settings(name=name, **EVENTFUL))
        for _ in range(EPOCHS * STEPS):
            schedule.step()
        last = schedule.value
        schedule.step()
        assert schedule.value == last, name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_no_schedule_warns(name: str, optimizer: str, warmup_epochs: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps, schedule = schedule_of(schedule_settings(name=name, warmup_epochs=warmup_epochs), optimizer)
        for step in range(EPOCHS * STEPS):
            steps.step()
            schedule.step()
            if step % STEPS == STEPS - 1:
                schedule.end_epoch(1.0)


def test_a_plateau_counts_epochs_from_the_first_that_ends_at_the_peak() -> None:
    """With equal losses, that one is the best, and each later one reduces the rate."""
    for warmup_epochs, first in ((0.8, 1), (1, 2)):
        settings = schedule_settings(name="plateau", warmup_epochs=warmup_epochs, patience=0, factor=0.5)
        found = rates(settings, [1.0] * EPOCHS)[first * STEPS :: STEPS]
        assert found[:3] == pytest.approx([PEAK, PEAK / 2, PEAK / 4])
