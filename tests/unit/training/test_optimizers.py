"""Optimizers by name, and Muon on filters."""

import copy
from typing import Any

import pytest
import torch
from helpers import (
    MEAN,
    STD,
    Recorded,
    optimizer_settings,
    pooling_model,
    random_images,
    schedule_settings,
    tiny_model,
    tiny_net,
)
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.config.schema import Model
from leanresnet.models.resnet import ResNet, build_model
from leanresnet.training.optimizers import Muon, build_optimizer, orthogonalize
from leanresnet.training.schedules import build_schedule

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
    # A schedule alone changes the learning rate.
    assert group("adagrad")["lr_decay"] == 0
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


@pytest.mark.parametrize("name", ["sgd", "muon"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_biases_of_batch_norm_have_their_own_rate_and_the_decay_of_the_others(name: str, everywhere: bool) -> None:
    net = tiny_net()
    shared = {"weight_decay": 0.1, "decay_norm_and_bias": everywhere, "momentum": 0.0, "nesterov": False}
    optimizer = build_optimizer(net, optimizer_settings(name=name, lr=0.2, bias_lr_ratio=8.0, **shared))
    schedule = build_schedule(optimizer, schedule_settings(name="step", warmup_epochs=0, step_epochs=1), 3, 1)
    for parameter in net.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = 1 - 0.2 * 0.1 * (Muon.REST if name == "muon" else 1) if everywhere else 1.0
    vectors = torch.cat([parameter.data for parameter in net.parameters() if parameter.ndim == 1])
    torch.testing.assert_close(vectors, torch.full_like(vectors, decayed))
    schedule.step()
    biases = {m.bias for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {p for p, rate in rates.items() if rate == pytest.approx(0.16)} == biases
    assert {p for p, rate in rates.items() if rate == pytest.approx(0.02)} == set(net.parameters()) - biases


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_values(kind: torch.dtype, tolerance: float) -> None:
    for shape in ((3, 12, 40), (2, 40, 12), (1, 16, 16)):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        found = orthogonalize(matrices.to(kind))
        assert (found.shape, found.dtype) == (matrices.shape, kind)
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        cores = left.mT @ found.float() @ right.mT
        values = cores.diagonal(dim1=1, dim2=2)
        assert values.min() > 0.6
        assert values.max() < 1.3
        torch.testing.assert_close(cores - values.diag_embed(), torch.zeros_like(cores), atol=tolerance, rtol=0)


def test_muon_moves_filters_as_matrices_and_the_rest_by_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps against the update written out, and against AdamW on what is no filter."""
    monkeypatch.setattr("leanresnet.training.optimizers.has_fast_bf16", lambda device: False)
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
            leveled = orthogonalize(ahead.flatten(1)[None]).view_as(weight)
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


def test_muon_iterates_once_for_all_banks_of_one_shape() -> None:
    def products(**model: Any) -> int:
        net = tiny_net(**model)
        optimizer = build_optimizer(net, optimizer_settings(name="muon"))
        loss_of(net).backward()
        with Recorded() as recorded:
            optimizer.step()
        return len([call for call in recorded.calls if call.endswith("mm")])

    assert products(blocks=(4, 4)) == products(blocks=(2, 2))


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


PREACTIVATION = {"block": "preactivation", "blocks": (2, 2)}


@pytest.mark.parametrize(
    "model",
    [
        tiny_model(squeeze_excite=4),
        tiny_model(activation="gelu", blocks=(2, 2)),
        tiny_model(**PREACTIVATION),
        tiny_model(**PREACTIVATION, squeeze_excite=4),
        pooling_model(squeeze_excite=4),
    ],
    ids=["basic", "gelu", "preactivation", "preactivation-squeeze", "pool"],
)
def test_muon_holds_the_norm_of_exactly_those_filters_to_whose_norm_the_network_is_blind(model: Model) -> None:
    """Three times as large, they change no answer; any other convolution does."""
    net = build_model(model, MEAN, STD, seed=0, images=IMAGES).train()
    held = {id(p) for p in build_optimizer(net, optimizer_settings(name="muon")).param_groups[0]["params"]}
    filters = {name: p for name, p in net.named_parameters() if p.ndim == 4 and p.requires_grad}
    blind = set()
    with torch.no_grad():
        expected = net(IMAGES)
        for name, weight in filters.items():
            weight.mul_(3)
            if float((net(IMAGES) - expected).norm() / expected.norm()) < 1e-3:
                blind.add(name)
            weight.div_(3)
    # The first layer of squeeze-and-excitation may be inactive here, so that nothing of it shows.
    assert {name for name in filters if id(filters[name]) in held} == {name for name in blind if "fc1" not in name}


def test_muon_leaves_squeeze_and_excitation_to_adamw() -> None:
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
