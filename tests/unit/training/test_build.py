"""Every part of a recipe reaches what is put together."""

import time

import pytest
import torch
from helpers import pooling_model, random_images, synthetic_split, tiny_recipe
from torch import Tensor, nn

from leanresnet.analysis import estimate
from leanresnet.analysis.estimate import training_seconds
from leanresnet.compute.compilation import CompiledFunction
from leanresnet.compute.distributed import DistributedContext
from leanresnet.config.schema import Recipe
from leanresnet.data.splits import Split
from leanresnet.models.resnet import build_model
from leanresnet.training import build as module
from leanresnet.training.build import build_training
from leanresnet.training.loop import Objective, train_one_epoch
from leanresnet.training.losses import CrossEntropy
from leanresnet.training.optimizers import Muon

CPU = torch.device("cpu")
TRAIN = synthetic_split(120)


def recipe(**changes: object) -> Recipe:
    plain = tiny_recipe().model_dump()
    parts = {
        "model": pooling_model().model_dump(),
        "batch_size": 20,
        "epochs": 4,
        "initialization": "dirac",
        "bn_momentum": 0.3,
        "max_grad_norm": 2.5,
        "precision": "bf16",
        "optimizer": plain["optimizer"] | {"name": "muon", "lr": 0.02},
        "schedule": plain["schedule"] | {"name": "linear", "warmup_epochs": 0.0, "final_ratio": 0.0},
        "progressive_resizing": {"epochs": 1, "size": 16},
        "seed": 5,
    }
    return Recipe.model_validate(plain | parts | changes)


def test_a_whitening_stem_learns_from_all_classes_of_images_that_are_sorted_by_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WHITENING_IMAGES", 50)
    grey = random_images(60, seed=1)[:, :1].div(20, rounding_mode="floor").add(120).expand(-1, 3, -1, -1)
    images = torch.cat([grey, random_images(60)])
    split = Split(images, torch.arange(2).repeat_interleave(60), ("a", "b"), "folder")
    net = build_training(recipe(), CrossEntropy(0.0), split, CPU).net
    with torch.no_grad():
        outputs = net.stem(net.normalize(images))[:, :12]
    assert outputs.transpose(0, 1).flatten(1).var(1).max() < 1.2


def test_the_network_has_the_classes_of_the_data_and_the_batches_the_seed_of_the_recipe() -> None:
    split = Split(TRAIN.images, TRAIN.labels % 3, ("a", "b", "c"), "other")
    made = [build_training(recipe(seed=seed), CrossEntropy(0.0), split, CPU) for seed in (5, 6)]
    images, labels = zip(*(next(each.batches.epoch(2)) for each in made), strict=True)
    assert made[0].net(images[0]).shape == (20, 3)
    assert not torch.equal(labels[0], labels[1])


def test_a_recipe_is_put_together_with_nothing_left_out() -> None:
    made = build_training(recipe(), CrossEntropy(0.0), TRAIN, CPU)
    mean, std = TRAIN.channel_statistics
    expected = build_model(pooling_model(), mean, std, 5, 0.3, "dirac", TRAIN.images)
    assert made.net.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(t, expected.state_dict()[name]) for name, t in made.net.state_dict().items())
    assert made.net.layers[0][0][1].momentum == 0.3
    assert [next(iter(made.batches.epoch(n)))[0].shape for n in (1, 2)] == [(20, 3, 16, 16), (20, 3, 32, 32)]
    assert isinstance(made.step_config.optimizer, Muon)
    assert made.step_config.max_grad_norm == 2.5
    with made.step_config.autocast:
        assert torch.is_autocast_enabled("cpu")
    rates = []
    for _ in range(4 * 6):
        rates.append(made.step_config.schedule.value)
        made.step_config.optimizer.step()
        made.step_config.schedule.step()
    assert rates == pytest.approx([0.02 * (1 - step / 24) for step in range(24)])


def test_the_pixels_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    bincount = torch.bincount
    monkeypatch.setattr(torch, "bincount", lambda x, **options: counted.append(len(x)) or bincount(x, **options))  # type: ignore[func-returns-value]
    build_training(recipe(), CrossEntropy(0.0), synthetic_split(20), CPU)
    assert counted == [20 * 32 * 32] * 3


def test_given_constants_come_before_measured_ones() -> None:
    constants = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    net = build_training(recipe(normalization=constants), CrossEntropy(0.0), TRAIN, CPU).net
    assert net.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert net.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


@pytest.mark.parametrize("compile_it", [False, True, "reduce-overhead"])
def test_the_switch_decides_whether_a_step_is_compiled(compile_it: bool | str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Objective, bool]] = []

    def compiled(objective: Objective, replay: bool) -> Objective:
        given.append((objective, replay))
        return objective

    monkeypatch.setattr(module, "CompiledFunction", compiled)
    made = build_training(recipe(compile=compile_it), CrossEntropy(0.0), TRAIN, CPU)
    assert given == ([(made.step_config.objective, compile_it == "reduce-overhead")] if compile_it else [])
    assert train_one_epoch(made.net, made.batches.epoch(1), made.step_config)["loss"] > 0


class TwoProcesses(DistributedContext):
    """The context of one of two processes, without the other one."""

    def wrap_objective(self, net: nn.Module, objective: Objective) -> Objective:
        return objective


@pytest.mark.parametrize("rank", [0, 1])
def test_statistics_that_processes_exchange_are_not_compiled_and_the_first_process_says_so(
    rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = recipe(compile=True, sync_batch_norm=True)
    made = build_training(shared, CrossEntropy(0.0), TRAIN, CPU, TwoProcesses(rank, 2))
    assert not isinstance(made.step_config.objective, CompiledFunction)
    said = "warning: sync_batch_norm exchanges statistics within a step, so torch.compile is not used\n"
    assert capsys.readouterr().err == ("" if rank else said)
    assert isinstance(build_training(shared, CrossEntropy(0.0), TRAIN, CPU).step_config.objective, CompiledFunction)


@pytest.mark.parametrize("changes", [{}, {"epochs": 1, "progressive_resizing": {"epochs": 0, "size": 16}}])
@pytest.mark.parametrize("schedule", ["onecycle", "linear"])
def test_an_estimate_needs_no_long_schedule(schedule: str, changes: dict[str, object]) -> None:
    plain = tiny_recipe().schedule.model_dump()
    settings = plain | {"name": schedule, "warmup_epochs": 0.9, "final_ratio": 0.1}
    assert training_seconds(recipe(schedule=settings, **changes), 100, 10, CPU)[1] > 0


def test_an_estimate_includes_the_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes half a minute, unless it is compiled already, by a clock that nothing else moves."""
    now, known = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.compiler, "reset", known.clear)

    def compiled(objective: Objective, replay: bool) -> Objective:
        waits = iter([0.0 if known else 30.0])
        known.append(objective)

        def call(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            now[0] += next(waits, 0.0) + 2.0
            return objective(images, labels)

        return call

    monkeypatch.setattr(module, "CompiledFunction", compiled)
    made = recipe(compile=True)
    for _ in ("baseline", "student"):
        assert training_seconds(made, 10 * made.batch_size, 10, CPU) == (30.0, 20.0)
    assert training_seconds(recipe(compile=False), 100, 10, CPU) == (0.0, 0.0)


def test_an_estimate_of_a_teacher_is_the_images_over_its_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "measure_speed", lambda *_, **__: {"throughput": 50.0})
    assert estimate.seconds_per_inference(tiny_recipe(), 100, 10, torch.device("cpu")) == 2.0
