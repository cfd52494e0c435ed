"""The average and its statistics are those of torch, byte for byte, without what waits for a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import Recorded, random_images, tiny_net
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from leanresnet.training.averaging import MovingAverage, compute_batch_norm


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for seed, count in enumerate((8, 8, 4)):
        yield random_images(count, seed), torch.zeros(count)


def step(net: nn.Module, seed: int) -> None:
    """The weights move, and batch norm counts a batch."""
    net.train()(random_images(4, seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@pytest.mark.parametrize("net", [{}, {"block": "preactivation"}])
def test_the_averaged_network_has_the_bytes_of_torchs(net: dict[str, Any]) -> None:
    trained = tiny_net(**net)
    own, torchs = MovingAverage(trained, 0.9), AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for epoch in range(2):
        for number in range(3):
            step(trained, 10 * epoch + number)
            own.update(trained)
            torchs.update_parameters(trained)
        compute_batch_norm(own.module, batches())
        update_bn(batches(), torchs.module)
        for (name, mine), other in zip(own.module.named_parameters(), torchs.module.parameters(), strict=True):
            assert torch.equal(mine, other), name
        for (name, mine), other in zip(own.module.named_buffers(), torchs.module.buffers(), strict=True):
            assert torch.equal(mine, other), name
    assert own.module.training
    momenta = {module.momentum for module in own.module.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta == {0.1}


def test_the_mode_is_restored() -> None:
    net = tiny_net().eval()
    compute_batch_norm(net, batches())
    assert not any(module.training for module in net.modules())


def test_the_statistics_build_no_graph() -> None:
    net, graphs = tiny_net(), []
    net.stem[0].register_forward_hook(lambda layer, given, output: graphs.append(output.requires_grad))
    compute_batch_norm(net, batches())
    assert graphs == [False] * 3


def test_an_update_is_one_operation_on_the_device_and_the_statistics_are_not_read() -> None:
    net = tiny_net()
    average = MovingAverage(net, 0.9)
    average.update(net)
    with Recorded() as recorded:
        average.update(net)
    # The number of updates is on the CPU also where the network is not.
    counted = ["aten::eq", "aten::is_nonzero", "aten::_local_scalar_dense", "aten::add_"]
    assert [call for call in recorded.calls if call not in counted and call != "aten::detach"] == [
        "aten::_foreach_lerp_"
    ]
    with Recorded() as recorded:
        compute_batch_norm(net, batches())
    assert "aten::_local_scalar_dense" not in recorded.calls
