"""Where a sharpness-aware step takes its gradient, and that nothing else moves."""

import copy

import pytest
import torch
from helpers import Recorded, random_images, tiny_net
from torch import Tensor
from torch.nn import functional as F

from leanresnet.compute.device import autocast
from leanresnet.config.schema import Sam
from leanresnet.models.resnet import ResNet
from leanresnet.training.loop import StepConfig, objective_of, train_one_epoch
from leanresnet.training.losses import CrossEntropy
from leanresnet.training.sam import SharpnessAware

IMAGES, LABELS = random_images(16), torch.arange(16) % 10


def loss_of(net: ResNet) -> Tensor:
    return F.cross_entropy(net(IMAGES), LABELS)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_weights_move_along_the_gradient_by_the_radius(adaptive: bool) -> None:
    net = tiny_net().train()
    loss_of(net).backward()
    before, buffers = copy.deepcopy(net), [b.clone() for b in net.buffers()]
    gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    scales = torch.ones_like(weights)
    if adaptive:
        # By hand: weights by how large they are, batch norm's too, and each bias, which starts at 0, as it is.
        sizes = [0.01 + p.abs() if "weight" in name else torch.ones_like(p) for name, p in net.named_parameters()]
        scales = torch.cat([size.detach().flatten() for size in sizes])
        assert (scales == 1).any()
    with SharpnessAware(net, Sam(rho=0.3, adaptive=adaptive)).perturbed_weights():
        moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - weights
        net(IMAGES)
        assert any(not torch.equal(b, old) for b, old in zip(net.buffers(), buffers, strict=True))
    expected = 0.3 * scales**2 * gradient / (scales * gradient).norm()
    # The radius is that of the step over what it is relative to.
    torch.testing.assert_close((moved / scales).norm(), torch.tensor(0.3), atol=1e-3, rtol=0)
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=1e-3)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name]), name


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_step_takes_the_gradient_uphill(adaptive: bool) -> None:
    """Against a step of SGD by hand; batch norm's statistics are those of the first pass."""
    net, by_hand = tiny_net().train(), tiny_net().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sharpness = SharpnessAware(net, Sam(rho=0.3, adaptive=adaptive))
    loop = StepConfig(
        objective_of(net, CrossEntropy(0.0)), optimizer, Still(), autocast(IMAGES.device, "fp32"), None, sharpness
    )
    train_one_epoch(net, [(IMAGES, LABELS)], loop)

    loss_of(by_hand).backward()
    start, up = copy.deepcopy(by_hand), copy.deepcopy(by_hand)
    with SharpnessAware(by_hand, Sam(rho=0.3, adaptive=adaptive)).perturbed_weights():
        up.load_state_dict(by_hand.state_dict())
    up.zero_grad()
    loss_of(up).backward()
    for (name, mine), old, perturbed_weights in zip(
        net.named_parameters(), start.parameters(), up.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, old - 0.1 * perturbed_weights.grad, atol=1e-6, rtol=1e-4, msg=name)
    for (name, mine), old in zip(net.named_buffers(), start.buffers(), strict=True):
        assert torch.equal(mine, old), name


@pytest.mark.parametrize("adaptive", [False, True])
def test_operations_on_many_tensors_give_the_bytes_of_single_ones(adaptive: bool) -> None:
    net = tiny_net().train()
    loss_of(net).backward()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    scales = [
        p.detach().abs() + 0.01 if adaptive and not name.endswith("bias") else 1.0 for name, p in net.named_parameters()
    ]
    gradients = [p.grad * t for p, t in zip(net.parameters(), scales, strict=True)]
    length = 0.3 / torch.stack([g.norm() for g in gradients]).norm().clamp(min=1e-12)
    expected = [p.detach() + g * t * length for p, g, t in zip(net.parameters(), gradients, scales, strict=True)]
    with SharpnessAware(net, Sam(rho=0.3, adaptive=adaptive)).perturbed_weights():
        for mine, one in zip(net.parameters(), expected, strict=True):
            assert torch.equal(mine, one)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_number_of_operations_does_not_grow_with_the_network(adaptive: bool) -> None:
    def count(**changes: object) -> int:
        net = tiny_net(**changes).train()
        loss_of(net).backward()
        allocations = {"aten::empty_like", "aten::detach"}
        with Recorded() as recorded, SharpnessAware(net, Sam(rho=0.3, adaptive=adaptive)).perturbed_weights():
            pass
        return len([call for call in recorded.calls if call not in allocations])

    assert count() == count(blocks=(3, 3)) < 20


class Still:
    """A schedule that leaves the learning rate alone."""

    value = 0.1

    def step(self) -> None:
        pass
