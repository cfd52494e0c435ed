"""Convolutions, and the gradient of their weights from several images side by side."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from leanresnet.models import convolution as module
from leanresnet.models.convolution import PackedGradient, convolution, pack


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_amx", lambda: True)


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize(("kernel", "count"), [(3, 2), (3, 3), (5, 4)])
def test_a_convolution_does_not_mix_packed_images(kernel: int, count: int) -> None:
    images, weight, gap = maps(5, 2, 3, 4), maps(6, 2, kernel, kernel), kernel // 2
    packed = pack(images, count, gap)
    assert packed.shape == (-(-5 // count), 2, 3, count * (4 + gap))
    assert packed.is_contiguous(memory_format=torch.channels_last)
    rows = F.conv2d(packed, weight, padding=gap)
    apart = torch.cat([part[..., :4] for part in rows.split(4 + gap, dim=3)]).unflatten(0, (count, -1))
    torch.testing.assert_close(apart.transpose(0, 1).flatten(0, 1)[:5], F.conv2d(images, weight, padding=gap))


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("kernel", [3, 5])
def test_the_gradients_are_those_of_the_convolution(size: int, kernel: int) -> None:
    x, weight = maps(30, 2, size, size).requires_grad_(), maps(3, 2, kernel, kernel).requires_grad_()
    gradient = maps(30, 3, size, size)
    packed = torch.autograd.grad(PackedGradient.apply(x, weight), (x, weight), gradient)
    plain = torch.autograd.grad(F.conv2d(x, weight, padding=kernel // 2), (x, weight), gradient)
    torch.testing.assert_close(packed, plain)
    (alone,) = torch.autograd.grad(PackedGradient.apply(x.detach(), weight), weight, gradient)
    torch.testing.assert_close(alone, plain[1])


def packs(layer: torch.nn.Module, width: int = 7, bf16: bool = True) -> bool:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = layer(maps(2, 128, 8, width, dtype=torch.float32))
    return "PackedGradient" in str(output.grad_fn)


def test_only_small_maps_that_a_training_with_amx_convolves_in_bfloat16_are_packed(
    amx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = convolution(128, 128, 3)
    assert packs(layer)
    assert not packs(layer, width=8)
    assert not packs(layer, bf16=False)
    assert not packs(convolution(128, 127, 3))
    assert not packs(convolution(128, 128, 3, 2))
    assert not packs(convolution(128, 128, 1))
    with torch.no_grad():
        assert not packs(layer)
    assert not packs(layer.eval())
    monkeypatch.setattr(module, "has_amx", lambda: False)
    assert not packs(convolution(128, 128, 3))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_packed_layer_learns_what_a_plain_one_learns(compiled: bool, amx: None) -> None:
    layer, x, gradient = convolution(128, 130, 3), maps(40, 128, 3, 3, dtype=torch.float32), maps(40, 130, 3, 3)
    (plain,) = torch.autograd.grad(layer(x), layer.weight, gradient.float())
    with torch.autocast("cpu", torch.bfloat16):
        # What is the project's own is the trace, which has to be whole; the code for a step is compiled elsewhere.
        output = torch.compile(layer, backend="aot_eager", fullgraph=True)(x) if compiled else layer(x)
    (packed,) = torch.autograd.grad(output, layer.weight, gradient.to(output.dtype))
    assert packed.dtype == torch.float32
    assert (packed - plain).norm() < 0.01 * plain.norm()
