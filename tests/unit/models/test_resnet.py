"""The network: shapes, blocks, normalization and reproducible weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from environment import outside_environment
from forked import run_code
from helpers import MEAN, STD, pooling_model, random_images, tiny_model, tiny_net
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision import ops

from leanresnet.compute.distributed import DistributedContext
from leanresnet.config.schema import Model
from leanresnet.models.blocks import BasicBlock, PreActivationBlock, StochasticDepth
from leanresnet.models.convolution import convolution
from leanresnet.models.resnet import ResNet, Whitening, build_model


@torch.no_grad()
def outputs_of(net: ResNet, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """What the named modules returned in one forward pass."""
    found: dict[str, Tensor] = {}

    def snapshot_callback(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            found[name] = output

        return hook

    handles = [net.get_submodule(name).register_forward_hook(snapshot_callback(name)) for name in names]  # type: ignore[arg-type]
    net(images)
    for handle in handles:
        handle.remove()
    return found


def test_every_image_gets_ten_scores() -> None:
    scores = tiny_net()(random_images(5))
    assert scores.shape == (5, 10)
    assert scores.dtype == torch.float32


def test_the_map_halves_with_each_layer_after_the_first() -> None:
    model = {"layers": 4, "blocks": (2, 1, 2, 1), "channels": (4, 6, 8, 10), "kernels": (3, 5, 1, 3)}
    net = tiny_net(**model, skip_kernels=(1, 3, 5, 1), pool=2).eval()
    maps = outputs_of(net, ["stem", "layers.0", "layers.1", "layers.2", "layers.3"], random_images(2))
    assert [tuple(found.shape[1:]) for found in maps.values()] == [
        (4, 32, 32),
        (4, 32, 32),
        (6, 16, 16),
        (8, 8, 8),
        (10, 4, 4),
    ]


@pytest.mark.parametrize(
    "model",
    [tiny_model(), tiny_model(downsample="pool", pool=8), pooling_model()],
    ids=["stride", "pool", "pool behind a whitening stem"],
)
def test_the_sides_of_the_maps_are_what_the_model_says_at_every_size(model: Model) -> None:
    net = build_model(model, MEAN, STD, 0).eval()
    for size in range(8, 33):
        maps, _ = net.forward_features(F.interpolate(random_images(1).float(), size=size))
        assert [found.shape[-1] for found in maps] == model.feature_map_sizes(size)[1:]


def test_only_the_first_block_of_a_later_layer_has_a_stride() -> None:
    net = tiny_net(layers=3, blocks=(2, 3, 2), channels=(8, 8, 12), kernels=(3,) * 3, skip_kernels=(1,) * 3, pool=8)
    strides = {
        name: module.stride for name, module in net.named_modules() if isinstance(module, nn.Conv2d) and name != "stem"
    }
    halving = {"layers.1.0.conv1.0", "layers.1.0.shortcut.0", "layers.2.0.conv1.0", "layers.2.0.shortcut.0"}
    assert {name for name, stride in strides.items() if stride == (2, 2)} == halving
    assert {stride for name, stride in strides.items() if name not in halving} == {(1, 1)}


def test_a_shortcut_projects_only_where_the_shape_changes() -> None:
    net = tiny_net(layers=3, blocks=(2, 2, 2), channels=(8, 8, 12), kernels=(3,) * 3, skip_kernels=(3,) * 3, pool=8)
    blocks = {name: block for name, block in net.named_modules() if isinstance(block, BasicBlock)}
    assert len(blocks) == 6
    projecting = {name for name, block in blocks.items() if not isinstance(block.shortcut, nn.Identity)}
    assert projecting == {"layers.1.0", "layers.2.0"}
    assert all(blocks[name].shortcut[0].kernel_size == (3, 3) for name in projecting)
    assert not isinstance(BasicBlock(4, 6, 3, 1, stride=1).shortcut, nn.Identity)


def batch_norm(x: Tensor, norm: nn.BatchNorm2d, training: bool) -> Tensor:
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    else:
        mean, var = norm.running_mean, norm.running_var
    scale = norm.weight / torch.sqrt(var + norm.eps)
    return (x - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(6, 6, 1), (6, 10, 2), (6, 6, 2), (6, 10, 1)])
def test_a_block_adds_its_shortcut_before_the_last_relu(inputs: int, outputs: int, stride: int, training: bool) -> None:
    torch.manual_seed(0)
    block = BasicBlock(inputs, outputs, kernel=5, skip_kernel=3, stride=stride).double()
    for norm in (module for module in block.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(3, inputs, 8, 8, dtype=torch.float64)

    conv1, norm1, conv2, norm2 = *block.conv1, *block.conv2
    inner = batch_norm(F.conv2d(x, conv1.weight, stride=stride, padding=2), norm1, training).clamp(min=0)
    inner = batch_norm(F.conv2d(inner, conv2.weight, padding=2), norm2, training)
    beside = x
    if stride != 1 or inputs != outputs:
        skip, skip_norm = block.shortcut
        beside = batch_norm(F.conv2d(x, skip.weight, stride=stride, padding=1), skip_norm, training)
    torch.testing.assert_close(block.train(training)(x), (inner + beside).clamp(min=0))


def unsettled(block: nn.Module) -> nn.Module:
    """Batch norms that are neither the identity nor fresh."""
    torch.manual_seed(0)
    for norm in (module for module in block.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return block.double()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(6, 6, 1), (6, 10, 2), (6, 6, 2), (6, 10, 1)])
def test_a_preactivated_block_normalises_first_and_adds_last(
    inputs: int, outputs: int, stride: int, training: bool
) -> None:
    block = unsettled(PreActivationBlock(inputs, outputs, kernel=5, skip_kernel=3, stride=stride))
    x = torch.randn(3, inputs, 8, 8, dtype=torch.float64)
    active = batch_norm(x, block.norm1, training).clamp(min=0)
    inner = F.conv2d(active, block.conv1.weight, stride=stride, padding=2)
    inner = F.conv2d(batch_norm(inner, block.norm2, training).clamp(min=0), block.conv2.weight, padding=2)
    beside = x
    if stride != 1 or inputs != outputs:
        beside = F.conv2d(active, block.shortcut.weight, stride=stride, padding=1)
    torch.testing.assert_close(block.train(training)(x), inner + beside)


def test_a_preactivated_network_normalises_what_it_pools() -> None:
    net = tiny_net(block="preactivation").eval()
    unsettled(net).float()
    found = outputs_of(net, ["stem", "layers.1"], images := random_images(4))
    assert found["stem"].min() < 0
    pooled = batch_norm(found["layers.1"], net.norm, training=False).clamp(min=0).mean((2, 3))
    torch.testing.assert_close(net(images), net.classifier(pooled))


@pytest.mark.parametrize("kind", [BasicBlock, PreActivationBlock])
def test_squeeze_and_excitation_scales_the_channels_of_the_branch(kind: type[BasicBlock | PreActivationBlock]) -> None:
    torch.manual_seed(0)
    block = kind(8, 8, 3, 1, 1, activation=lambda x: x, ratio=4).eval()
    x = torch.randn(2, 8, 6, 6)
    scaled = block(x) - x
    block.squeeze, squeeze = nn.Identity(), block.squeeze
    branch = block(x) - x
    hidden = (branch.mean((2, 3)) @ squeeze.fc1.weight.flatten(1).T + squeeze.fc1.bias).clamp(min=0)
    scale = torch.sigmoid(hidden @ squeeze.fc2.weight.flatten(1).T + squeeze.fc2.bias)
    assert squeeze.fc1.weight.shape == (2, 8, 1, 1)
    torch.testing.assert_close(scaled, scale[:, :, None, None] * branch, atol=1e-5, rtol=1e-4)


def test_stochastic_depth_drops_later_blocks_more_often_and_none_in_evaluation() -> None:
    model = tiny_model(blocks=(2, 2))
    net = build_model(model, MEAN, STD, seed=0, stochastic_depth=0.8)
    rates = [block.drop.drop for block in net.modules() if isinstance(block, BasicBlock)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8])
    plain = build_model(model, MEAN, STD, seed=0)
    images = random_images(8)
    assert torch.equal(net.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("kind", [BasicBlock, PreActivationBlock])
def test_a_dropped_image_goes_by_the_shortcut_and_the_others_make_up_for_it(
    kind: type[BasicBlock | PreActivationBlock],
) -> None:
    torch.manual_seed(0)
    block = kind(6, 6, 3, 1, 1, activation=lambda x: x, drop=0.25).train()
    x = torch.randn(400, 6, 4, 4)
    found = block(x) - x
    block.drop = nn.Identity()
    branch = block(x) - x
    dropped = (found == 0).flatten(1).all(1)
    # 100 expected, deviation 9
    assert 65 < int(dropped.sum()) < 135
    torch.testing.assert_close(found[~dropped], branch[~dropped] / 0.75, atol=1e-5, rtol=1e-4)


def test_each_process_drops_what_one_process_would_drop_of_its_shard() -> None:
    """Which is what torchvision drops, whose import takes a second."""
    images = torch.randn(8, 3, 2, 2)
    module = StochasticDepth(0.5).train()
    shares = []
    for rank in range(2):
        torch.manual_seed(0)
        module.world = DistributedContext(rank, 2)
        shares.append(module(module.world.shard(images)))
    torch.manual_seed(0)
    assert torch.equal(torch.cat(shares), ops.stochastic_depth(images, 0.5, "row"))
    assert not torch.equal(torch.cat(shares), images)


def test_pixels_are_normalised_inside_the_network() -> None:
    images = random_images(4)
    seen: list[Tensor] = []
    net = tiny_net().eval()
    net.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = net(images)
        plain = build_model(tiny_model(), [0.0] * 3, [1.0] * 3, seed=0).eval()
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        by_hand = (images.double() / 255 - mean) / std
        torch.testing.assert_close(seen[0].double(), by_hand, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(plain(by_hand.float() * 255), logits, atol=1e-4, rtol=1e-4)


def test_normalization_constants_travel_with_the_weights() -> None:
    net = tiny_net()
    assert {"mean", "std"} <= set(net.state_dict())
    assert not {"mean", "std"} & {name for name, _ in net.named_parameters()}
    other = build_model(tiny_model(), [0.0] * 3, [1.0] * 3, seed=5)
    other.load_state_dict(net.state_dict())
    images = random_images(2)
    assert torch.equal(other.eval()(images), net.eval()(images))


def test_uint8_and_float_pixels_give_the_same_scores() -> None:
    net, images = tiny_net().eval(), random_images(3)
    assert torch.equal(net(images), net(images.float()))


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    first = tiny_net(seed=7).state_dict()
    torch.manual_seed(2)
    second, other = tiny_net(seed=7).state_dict(), tiny_net(seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_building_leaves_the_global_random_state() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    tiny_net(seed=7)
    assert torch.equal(torch.get_rng_state(), before)


def test_building_does_not_seed_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that loads a model may draw on a GPU, whose state `fork_rng` does not restore here."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds all GPUs"))
    tiny_net(seed=7)


def test_convolutions_start_with_he_initialisation() -> None:
    net = tiny_net(channels=(64, 128))
    weight = net.get_parameter("layers.1.0.conv1.0.weight").detach()  # 64 -> 128 channels, 3x3
    assert float(weight.std()) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=0.001)


def test_batch_norm_momentum_is_set_everywhere() -> None:
    net = build_model(tiny_model(), MEAN, STD, seed=0, bn_momentum=0.37)
    assert {module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)} == {0.37}


def test_filters_lie_in_channels_last_memory() -> None:
    filters = [p for p in tiny_net().parameters() if p.ndim == 4]
    assert filters
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)


def test_a_whitening_stem_makes_uncorrelated_outputs_of_unit_variance() -> None:
    images = F.avg_pool2d(random_images(200).float(), 3, stride=1, padding=1)
    net = build_model(pooling_model(), MEAN, STD, seed=0, images=images)
    with torch.no_grad():
        outputs = net.stem(net.normalize(images))
    covariance = outputs.transpose(0, 1).flatten(1).double().cov()
    half = covariance[:12, :12]
    # Directions of little variance are held down, by 5e-4 (Jordan's value).
    patches = F.unfold(net.normalize(images).double(), 2).transpose(0, 1).flatten(1)
    variances = torch.linalg.eigvalsh(patches.cov(correction=0))
    torch.testing.assert_close(half.diagonal(), variances / (variances + 5e-4), atol=1e-4, rtol=0)
    assert half.diagonal().median() > 0.9
    torch.testing.assert_close(half - half.diagonal().diag(), torch.zeros(12, 12).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(covariance[:12, 12:], -half, atol=1e-6, rtol=1e-4)
    assert not net.stem.weight.requires_grad
    assert net.stem.bias.requires_grad
    assert not net.stem.bias.any()


def test_a_whitening_stem_is_computed_on_the_device_of_the_images() -> None:
    """With tensors that have a device but no content, so that it needs no GPU."""
    places: dict[str, set[str]] = {}

    class Placed(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            devices = {each.device.type for each in tree_leaves(args) if isinstance(each, Tensor)}
            places.setdefault(func._schema.name, set()).update(devices)
            return func(*args, **(kwargs or {}))

    with FakeTensorMode():
        with torch.device("cuda"):
            stem, images = Whitening(), torch.empty(9, 3, 32, 32)
        with Placed():
            stem.fit(images)
    assert places["aten::im2col"] == places["aten::mm"] == {"cuda"}
    # Two libraries could choose other signs or another order.
    assert places["aten::_linalg_eigh"] == {"cpu"}


def test_a_pooled_layer_is_convolution_pool_norm_activation_then_blocks() -> None:
    net = build_model(pooling_model(), MEAN, STD, seed=0).train()
    images = random_images(4)
    with torch.no_grad():
        x = F.gelu(net.stem(net.normalize(images)))
        assert x.shape == (4, 24, 31, 31)
        for n, (side, blocks) in enumerate([(15, 0), (7, 1)]):
            (convolution, norm), layer = list(net.layers[n][0]), net.layers[n]
            x = F.gelu(batch_norm(F.max_pool2d(F.conv2d(x, convolution.weight, padding=1), 2), norm, training=True))
            assert x.shape[2:] == (side, side)
            assert len(layer) == 1 + blocks
            for block in layer[1:]:
                conv1, norm1, conv2, norm2 = *block.conv1, *block.conv2
                inner = F.gelu(batch_norm(F.conv2d(x, conv1.weight, padding=1), norm1, training=True))
                x = F.gelu(batch_norm(F.conv2d(inner, conv2.weight, padding=1), norm2, training=True) + x)
        by_hand = net.classifier(x.amax((2, 3)))
        torch.testing.assert_close(net(images), by_hand, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["average", "max"])
def test_the_last_pool(kind: str) -> None:
    whole = build_model(tiny_model(pool_kind=kind), MEAN, STD, seed=0)
    parts = build_model(tiny_model(pool=8, pool_kind=kind), MEAN, STD, seed=0)
    maps = torch.randn(3, 16, 16, 16)
    reduce = torch.mean if kind == "average" else torch.amax
    torch.testing.assert_close(whole._pool(maps), reduce(maps, (2, 3), keepdim=True))
    quarters = torch.stack([reduce(q, (2, 3)) for half in maps.split(8, 2) for q in half.split(8, 3)], 2)
    torch.testing.assert_close(parts._pool(maps).flatten(2), quarters)


def test_dirac_filters_hand_their_inputs_on() -> None:
    plain = build_model(pooling_model(), MEAN, STD, seed=3)
    net = build_model(pooling_model(), MEAN, STD, seed=3, initialization="dirac")
    convolution = net.layers[1][0][0]
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(convolution(x)[:, :8], x)
    before = plain.layers[1][0][0].weight
    assert torch.equal(convolution.weight[8:], before[8:])
    assert torch.equal(net.classifier.weight, plain.classifier.weight)


def test_a_pool_of_the_whole_map_takes_smaller_images() -> None:
    for model in (tiny_model(), pooling_model()):
        net = build_model(model, MEAN, STD, seed=0)
        assert net(random_images(4)[:, :, :20, :20]).shape == (4, 10)


@pytest.mark.parametrize("side", [8, 9])
def test_a_strided_1x1_convolution_of_few_channels_is_the_same_convolution(side: int) -> None:
    shortcut = BasicBlock(6, 10, 3, 1, stride=2).shortcut[0]
    x = torch.randn(2, 6, side, side)
    torch.testing.assert_close(shortcut(x), F.conv2d(x, shortcut.weight, stride=2))


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX2", "DEFAULT"])
def test_training_with_few_channels_does_not_corrupt_memory(instructions: str, tmp_path: Path) -> None:
    """In a fork, which the C library would abort; oneDNN's kernels for AVX-512 hide the fault on some machines."""
    script = (
        "import torch; from leanresnet.models.blocks import BasicBlock\n"
        "block = BasicBlock(6, 10, 3, 1, stride=2).to(memory_format=torch.channels_last)\n"
        "for _ in range(20):\n"
        "    x = torch.randn(8, 6, 32, 32).contiguous(memory_format=torch.channels_last)\n"
        "    block(x).square().sum().backward()\n"
    )
    done = run_code(script, tmp_path, outside_environment(ONEDNN_MAX_CPU_ISA=instructions))
    assert (done.returncode, done.stderr) == (0, "")


def test_dirac_filters_are_none_of_squeeze_and_excitation() -> None:
    model = pooling_model(squeeze_excite=2)
    plain = dict(build_model(model, MEAN, STD, seed=3).named_modules())
    dirac = dict(build_model(model, MEAN, STD, seed=3, initialization="dirac").named_modules())
    squeezes = [name for name in plain if name.endswith((".fc1", ".fc2"))]
    assert squeezes
    for name in squeezes:
        assert torch.equal(dirac[name].weight, plain[name].weight)


@pytest.mark.parametrize(("block", "is_active"), [("basic", True), ("preactivation", False)])
def test_the_stem_is_activated_where_no_block_does_it(block: str, is_active: bool) -> None:
    net = unsettled(tiny_net(block=block).eval()).float()
    entering: list[Tensor] = []
    net.layers[0].register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
    left = outputs_of(net, ["stem"], random_images(4))["stem"]
    assert left.min() < 0
    assert torch.equal(entering[0], left.clamp(min=0) if is_active else left)


def test_a_convolution_that_corrupts_memory_is_never_built() -> None:
    """Its fault is with fewer than 16 input channels, a kernel of 1 and a stride."""
    plain = nn.Conv2d
    for inputs, kernel, stride, is_plain in ((8, 1, 2, False), (15, 1, 2, False), (16, 1, 2, True), (8, 1, 1, True)):
        assert (type(convolution(inputs, 32, kernel, stride)) is plain) is is_plain
    assert type(convolution(8, 32, 3, 2)) is plain
