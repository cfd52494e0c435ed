"""Optimizers by name, Muon on filters, and every schedule against its closed form."""

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import MEAN, STD, optimizer_settings, pooling_model, random_images, schedule_settings, tiny_net
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.config import Schedule
from leanresnet.models.resnet import ResNet, build_model
from leanresnet.optim import LearningRate, Muon, build_optimizer, build_schedule, orthogonalize

CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "radam": torch.optim.RAdam,
    "adamw": torch.optim.AdamW,
    "muon": Muon,
}
IMAGES, LABELS = random_images(16), torch.arange(16) % 10


def loss_of(net: ResNet) -> Tensor:
    return F.cross_entropy(net(IMAGES), LABELS)


def take_step(net: ResNet, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = loss_of(net)
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", CLASSES)
def test_each_name_builds_its_class_and_steps_downhill(name: str) -> None:
    net = tiny_net()
    optimizer = build_optimizer(net, optimizer_settings(name=name, lr=1.0 if name == "adadelta" else 0.003))
    assert type(optimizer) is CLASSES[name]
    before = take_step(net, optimizer)
    assert loss_of(net).item() < before


def test_settings_reach_the_optimizer() -> None:
    net = tiny_net()
    settings = {"lr": 0.02, "momentum": 0.7, "nesterov": False, "betas": (0.8, 0.95), "rho": 0.85}

    def group(name: str) -> dict[str, Any]:
        return build_optimizer(net, optimizer_settings(name=name, **settings)).param_groups[0]

    assert (group("sgd")["momentum"], group("sgd")["nesterov"]) == (0.7, False)
    assert (group("muon")["momentum"], group("muon")["nesterov"]) == (0.7, False)
    assert group("adadelta")["rho"] == 0.85
    assert all(group(name)["betas"] == (0.8, 0.95) for name in ("adam", "radam", "adamw"))
    muon = build_optimizer(net, optimizer_settings(name="muon", **settings))
    assert all(each["betas"] == (0.8, 0.95) for each in muon.param_groups[1:])
    assert all(group(name)["lr"] == 0.02 for name in CLASSES)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("everywhere", [True, False])
def test_weight_decay_reaches_every_weight_and_the_rest_only_where_asked(name: str, everywhere: bool) -> None:
    net = tiny_net()
    settings = optimizer_settings(name=name, weight_decay=0.01, decay_norm_and_bias=everywhere)
    optimizer = build_optimizer(net, settings)
    decayed = [p for group in optimizer.param_groups for p in group["params"] if group["weight_decay"] == 0.01]
    spared = [p for group in optimizer.param_groups for p in group["params"] if group["weight_decay"] == 0.0]
    # Muon holds the norm of filters, and decays none.
    weights = [p.numel() for p in net.parameters() if p.ndim == 2 or (p.ndim > 2 and name != "muon")]
    filters = [p.numel() for p in net.parameters() if p.ndim > 2 and name == "muon"]
    vectors = [p.numel() for p in net.parameters() if p.ndim == 1]
    assert sorted(p.numel() for p in decayed) == sorted(weights + vectors * everywhere)
    assert sorted(p.numel() for p in spared) == sorted(filters + vectors * (not everywhere))


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_without_gradients_a_step_only_decays(name: str, everywhere: bool) -> None:
    net = tiny_net()
    settings = optimizer_settings(name=name, lr=0.5, weight_decay=0.1, decay_norm_and_bias=everywhere)
    optimizer = build_optimizer(net, settings)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = copy.deepcopy(net)
    # Nesterov's first step on a decayed gradient is 1 + momentum times as long.
    shrink = 1 - 0.5 * 0.1 * {"sgd": 1 + settings.momentum, "adamw": 1, "muon": Muon.REST}[name]
    optimizer.step()
    for old, new in zip(before.parameters(), net.parameters(), strict=True):
        decays = everywhere if old.ndim == 1 else not (name == "muon" and old.ndim == 4)
        torch.testing.assert_close(new, old * shrink if decays else old)


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-4), (True, 3e-2)])
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_values(
    bf16: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanresnet.optim.has_fast_bf16", lambda device: bf16)
    for shape in ((12, 40), (40, 12), (16, 16)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        found = orthogonalize(matrix)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        cores = left.T @ found @ right.T
        assert found.shape == matrix.shape
        assert cores.diagonal().min() > 0.6
        assert cores.diagonal().max() < 1.3
        torch.testing.assert_close(cores - cores.diagonal().diag(), torch.zeros_like(cores), atol=tolerance, rtol=0)


def test_muon_moves_filters_as_matrices_and_the_rest_by_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps against the update written out, and against AdamW on what is no filter."""
    monkeypatch.setattr("leanresnet.optim.has_fast_bf16", lambda device: False)
    settings = optimizer_settings(name="muon", lr=0.01, weight_decay=0.02, momentum=0.9, betas=(0.8, 0.9))
    ours, by_hand = tiny_net(), tiny_net()
    optimizer = build_optimizer(ours, settings)
    vectors = [p for p in by_hand.parameters() if p.ndim == 1]
    dense = [{"params": [by_hand.classifier.weight], "weight_decay": 0.02}]
    adamw = torch.optim.AdamW([*dense, {"params": vectors, "weight_decay": 0.0}], lr=0.001, betas=(0.8, 0.9))
    averages: dict[nn.Parameter, Tensor] = {}
    for _ in range(3):
        take_step(ours, optimizer)
        by_hand.zero_grad()
        loss_of(by_hand).backward()
        for weight in (p for p in by_hand.parameters() if p.ndim == 4):
            assert weight.grad is not None
            averages[weight] = 0.9 * averages.get(weight, torch.zeros_like(weight)) + 0.1 * weight.grad
            ahead = 0.9 * averages[weight] + 0.1 * weight.grad
            # Column order does not matter to an orthogonal factor, so torch's own flattening serves.
            leveled = orthogonalize(ahead.flatten(1)).view_as(weight)
            moved = weight.data - 0.01 * weight.data.norm() * leveled / leveled.norm()
            weight.data = moved * weight.data.norm() / moved.norm()
        adamw.step()
    for (name, mine), other in zip(ours.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4, msg=name)


def test_muon_agrees_with_torchs_own_on_a_matrix() -> None:
    """In its direction, to a few percent of the step: torch iterates in bfloat16."""
    start, gradient = torch.randn(2, 24, 72, generator=torch.Generator().manual_seed(0))
    matrix = nn.Parameter(start.clone())
    filters = nn.Parameter(start.clone().view(24, 3, 3, 8).permute(0, 3, 1, 2))
    matrix.grad, filters.grad = gradient, gradient.view(24, 3, 3, 8).permute(0, 3, 1, 2)
    torch.optim.Muon([matrix], lr=0.1, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw").step()
    Muon(
        [filters],
        [{"params": [nn.Parameter(torch.zeros(1))]}],
        optimizer_settings(name="muon", lr=0.1, weight_decay=0.0, momentum=0.9),
    ).step()
    ours = filters.detach().permute(0, 2, 3, 1).flatten(1)
    direction = matrix.detach() - start
    theirs = start + 0.1 * start.norm() * direction / direction.norm()
    theirs *= start.norm() / theirs.norm()
    torch.testing.assert_close(ours.norm(), start.norm())
    assert float((ours - theirs).abs().max()) < 0.05 * float((theirs - start).abs().max())


def test_weights_that_are_not_trained_stay() -> None:
    for name in CLASSES:
        net = build_model(pooling_model(), MEAN, STD, seed=0, images=IMAGES)
        fixed = net.stem.weight.clone()
        take_step(net, build_optimizer(net, optimizer_settings(name=name, weight_decay=0.1)))
        assert torch.equal(net.stem.weight, fixed), name


def test_muon_moves_every_parameter() -> None:
    net = tiny_net()
    before = copy.deepcopy(net.state_dict())
    take_step(net, build_optimizer(net, optimizer_settings(name="muon", lr=0.01)))
    assert not [name for name, p in net.named_parameters() if torch.equal(p, before[name])]


def test_muon_turns_every_bank_by_the_same_angle_whatever_its_size_and_scale() -> None:
    net = tiny_net()
    with torch.no_grad():
        net.layers[1][0].conv1[0].weight.mul_(7)
    before = copy.deepcopy(net)
    take_step(net, build_optimizer(net, optimizer_settings(name="muon", lr=0.05)))
    for old, new in zip(before.parameters(), net.parameters(), strict=True):
        if old.ndim == 4:
            angle = F.cosine_similarity(old.detach().flatten(), new.detach().flatten(), dim=0).acos()
            torch.testing.assert_close(new.norm(), old.norm())
            assert float(angle) == pytest.approx(0.05, rel=0.05)


def test_muon_leaves_what_no_batch_norm_follows_to_adamw() -> None:
    net = tiny_net(squeeze_excite=4)
    groups = build_optimizer(net, optimizer_settings(name="muon", weight_decay=0.01)).param_groups
    squeezing = [p for name, p in net.named_parameters() if "squeeze" in name and p.ndim == 4]
    assert len(squeezing) == 4
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in [*squeezing, net.classifier.weight]}
    assert groups[1]["weight_decay"] == 0.01


def test_muon_clears_every_gradient() -> None:
    net = tiny_net()
    optimizer = build_optimizer(net, optimizer_settings(name="muon"))
    loss_of(net).backward()
    assert all(p.grad is not None for p in net.parameters())
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in net.parameters())


def test_a_schedule_steers_both_halves_of_muon() -> None:
    net = tiny_net()
    optimizer = build_optimizer(net, optimizer_settings(name="muon", lr=0.1))
    assert isinstance(optimizer, Muon)
    schedule = build_schedule(optimizer, schedule_settings(name="step", warmup_epochs=0, step_epochs=1), 3, 1)
    take_step(net, optimizer)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.01)] * 3
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(net.state_dict())
    take_step(net, optimizer)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_an_optimizer_continues_from_its_state(name: str) -> None:
    settings = optimizer_settings(name=name, lr=0.01)
    net = tiny_net()
    optimizer = build_optimizer(net, settings)
    for _ in range(2):
        take_step(net, optimizer)
    other = copy.deepcopy(net)
    resumed = build_optimizer(other, settings)
    for group in resumed.param_groups:
        group["lr"] = 123.0
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        take_step(net, optimizer)
        take_step(other, resumed)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    for group in resumed.param_groups:
        group["lr"] = 0.0
    take_step(other, resumed)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


PEAK, EPOCHS, STEPS = 0.8, 8, 5


def schedule_of(settings: Schedule, optimizer: str = "sgd") -> tuple[torch.optim.Optimizer, LearningRate]:
    """A schedule over 8 epochs of 5 steps from a learning rate of 0.8."""
    built = build_optimizer(tiny_net(), optimizer_settings(name=optimizer, lr=PEAK))
    return built, build_schedule(built, settings, EPOCHS, STEPS)


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


def test_a_milestone_inside_the_warmup_holds_from_its_end() -> None:
    found = rates(schedule_settings(name="multistep", warmup_epochs=4, milestones=(3, 5), factor=0.1))
    assert found[19:26] == pytest.approx([PEAK * 20 / 21, *[PEAK * 0.1] * 5, PEAK * 0.01])


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


@pytest.mark.parametrize("name", ["constant", "step", "multistep", "plateau", "cosine_restarts", "onecycle", "linear"])
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
