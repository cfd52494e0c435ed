"""A proxy sees each batch, and the network learns from the part on which the proxy's loss is greatest."""

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from helpers import pooling_model, synthetic_split, tiny_net, tiny_recipe
from torch import Tensor, nn
from torch.nn import functional as F

from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext
from leanresnet.config.schema import Recipe, Selection
from leanresnet.training import build as module
from leanresnet.training import selection as selecting
from leanresnet.training.averaging import compute_batch_norm
from leanresnet.training.build import TrainingSetup, build_training
from leanresnet.training.fit import Training
from leanresnet.training.loader import EvalBatches
from leanresnet.training.loop import Objective, fit, train_one_epoch
from leanresnet.training.losses import CrossEntropy, DistillationLoss
from leanresnet.training.tasks import label_task
from leanresnet.training.validation import MEASURES, Metrics

CPU = torch.device("cpu")
TRAIN, VALIDATION = synthetic_split(80), synthetic_split(40, seed=1)
SELECTION = {"keep": 0.5, "width": 0.25, "blocks": 1}


def recipe(**changes: Any) -> Recipe:
    plain = tiny_recipe().model_dump()
    schedule = plain["schedule"] | {"name": "linear", "warmup_epochs": 0.0, "final_ratio": 0.0}
    short = {"epochs": 2, "batch_size": 20, "precision": "fp32", "schedule": schedule, "selection": SELECTION}
    return Recipe.model_validate(plain | short | changes)


def setup(made: Recipe, criterion: Any = None, world: DistributedContext = SINGLE_PROCESS) -> TrainingSetup:
    return build_training(made, criterion or CrossEntropy(0.0), TRAIN, CPU, world)


class Seen:
    """An objective that keeps the batches of the network."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.batches: list[tuple[Tensor, Tensor]] = []

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append((images, labels))
        return self.objective(images, labels)


def batches_of_the_network(made: TrainingSetup, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Seen, Metrics]:
    seen = Seen(made.step_config.objective)
    object.__setattr__(made.step_config, "objective", seen)
    return seen, train_one_epoch(made.net, batches, made.step_config)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_network_learns_from_the_images_with_the_greatest_loss_of_the_proxy_in_their_order(
    smoothing: float,
) -> None:
    made = setup(recipe(label_smoothing=smoothing))
    assert made.step_config.selection is not None
    images, labels = next(made.batches.epoch(1))
    with torch.no_grad():
        logits = made.step_config.selection.net(images)
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    hardest = sorted(sorted(range(20), key=lambda place: -float(losses[place]))[:10])
    seen, metrics = batches_of_the_network(made, [(images, labels)])
    assert torch.equal(seen.batches[0][0], images[hardest])
    assert torch.equal(seen.batches[0][1], labels[hardest])
    assert seen.batches[0][0].is_contiguous(memory_format=torch.channels_last)
    assert metrics["proxy_loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert metrics["proxy_accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


@pytest.mark.parametrize("mix", ["none", "cutmix"])
def test_the_proxy_learns_from_the_whole_batches_as_if_it_were_trained_alone(mix: str) -> None:
    """With the same recipe: optimizer, schedule, smoothing and clipping."""
    settings = recipe(
        label_smoothing=0.1,
        max_grad_norm=0.1,
        augmentation=recipe().augmentation.model_copy(update={"mix": mix}).model_dump(),
    )
    made = setup(settings)
    train_one_epoch(made.net, made.batches.epoch(1), made.step_config)
    small = settings.model_dump() | {"selection": SELECTION | {"keep": 1.0}}
    small["model"] = settings.selection.proxy(settings.model).model_dump()
    alone = setup(Recipe.model_validate(small), CrossEntropy(0.1))
    metrics = train_one_epoch(alone.net, alone.batches.epoch(1), alone.step_config)
    assert made.step_config.selection is not None
    for name, weight in made.step_config.selection.net.named_parameters():
        torch.testing.assert_close(weight, dict(alone.net.named_parameters())[name], msg=name)
    assert made.step_config.selection.metrics()["proxy_loss"] == pytest.approx(metrics["loss"], rel=1e-5)


def test_loss_and_accuracy_are_those_of_the_chosen_images() -> None:
    made = setup(recipe())
    seen, metrics = batches_of_the_network(made, made.batches.epoch(1))
    assert [len(labels) for _, labels in seen.batches] == [10] * 4
    again = setup(recipe(selection=SELECTION | {"keep": 1.0}))
    assert again.step_config.selection is None
    expected = train_one_epoch(again.net, seen.batches, again.step_config)
    assert {name: metrics[name] for name in expected} == expected


def test_averaged_weights_have_the_statistics_of_the_chosen_images() -> None:
    made = setup(recipe(model=pooling_model().model_dump()))
    fitted = fit(
        made.net,
        made.batches,
        EvalBatches(VALIDATION, 20, CPU),
        made.step_config,
        epochs=1,
        seed=0,
        ema_decay=0.9,
        measures=MEASURES,
        log_metrics=lambda metrics, epoch: None,
    )
    selection = made.step_config.selection
    assert selection is not None
    chosen = [selection.choose(*batch) for batch in made.batches.epoch(1)]
    assert [len(labels) for _, labels in chosen] == [10] * 4
    net = copy.deepcopy(made.net)
    net.load_state_dict(fitted.best_weights)
    compute_batch_norm(net, chosen)
    torch.testing.assert_close(net.state_dict(), fitted.best_weights)


def test_equal_losses_are_taken_in_the_order_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def equal(net: nn.Module, label_smoothing: float) -> selecting.ProxyObjective:
        def objective(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            loss = net(images).float().mean()
            return loss, torch.tensor(0), torch.ones(len(labels))

        return objective

    monkeypatch.setattr(module, "proxy_objective", equal)
    made = setup(recipe())
    images, labels = next(made.batches.epoch(1))
    seen, _ = batches_of_the_network(made, [(images, labels)])
    assert torch.equal(seen.batches[0][0], images[:10])


def test_nothing_of_the_state_changes_before_the_step() -> None:
    """The state is saved before the network's step is compiled, which comes after the choice."""
    made = setup(recipe())
    selection = made.step_config.selection
    assert selection is not None
    train_one_epoch(made.net, made.batches.epoch(1), made.step_config)
    before = copy.deepcopy(selection.state_dict())
    selection.select(*next(made.batches.epoch(2)))
    torch.testing.assert_close(selection.state_dict(), before, rtol=0, atol=0)
    selection.step()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(selection.state_dict(), before, rtol=0, atol=0)


def test_the_choice_does_not_depend_on_what_the_network_draws_or_learns() -> None:
    def chosen(**changes: Any) -> list[tuple[Tensor, Tensor]]:
        made = setup(recipe(**changes))
        return batches_of_the_network(made, made.batches.epoch(1))[0].batches

    first, again = chosen(), chosen(stochastic_depth=0.5, sam={"rho": 0.5, "adaptive": True})
    # The second pass of each step of SAM sees the same batch.
    for one, (images, labels) in zip(first, again[::2], strict=True):
        assert torch.equal(one[0], images)
        assert torch.equal(one[1], labels)
    other = chosen(seed=7)
    assert not torch.equal(first[0][1], other[0][1])


def test_the_network_draws_what_it_draws_without_a_proxy() -> None:
    made = setup(recipe(stochastic_depth=0.5))
    assert made.step_config.selection is not None
    before = torch.get_rng_state()
    made.step_config.selection.select(*next(made.batches.epoch(1)))
    made.step_config.selection.step()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_student_learns_from_the_images_that_a_proxy_chooses() -> None:
    teacher = tiny_net(seed=4)
    made = setup(recipe(), DistillationLoss(teacher, 0.9, 4.0, None, 0.0))
    seen, metrics = batches_of_the_network(made, made.batches.epoch(1))
    plain = setup(recipe())
    expected, proxy = batches_of_the_network(plain, plain.batches.epoch(1))
    for (images, labels), other in zip(seen.batches, expected.batches, strict=True):
        assert torch.equal(images, other[0])
        assert torch.equal(labels, other[1])
    assert metrics["proxy_loss"] == proxy["proxy_loss"]
    assert metrics["loss"] != proxy["loss"]


class SecondOfTwo(DistributedContext):
    """The second of two processes, without the first one, which chose the last images."""

    def wrap_objective(self, net: nn.Module, objective: Objective) -> Objective:
        return objective

    def broadcast(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.arange(10, 20))

    def reduce_step(self, loss: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        return loss.detach(), hits


def test_processes_share_the_images_that_the_first_one_chose() -> None:
    made = setup(recipe(), world=SecondOfTwo(1, 2))
    images, labels = next(made.batches.epoch(1))
    seen, _ = batches_of_the_network(made, [(images, labels)])
    assert torch.equal(seen.batches[0][0], images[15:])
    assert torch.equal(seen.batches[0][1], labels[15:])


def test_the_switch_decides_whether_the_proxy_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        module, "CompiledFunction", lambda objective, replay=False: given.append(objective) or objective
    )
    made = setup(recipe(compile=True))
    assert len(given) == 2
    assert train_one_epoch(made.net, made.batches.epoch(1), made.step_config)["loss"] > 0
    given.clear()
    setup(recipe(compile=False))
    assert given == []


def test_the_proxy_computes_in_the_precision_of_the_recipe() -> None:
    made, found = setup(recipe(precision="bf16")), set()
    assert made.step_config.selection is not None
    for layer in made.step_config.selection.net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, given, output: found.add(output.dtype))
    train_one_epoch(made.net, made.batches.epoch(1), made.step_config)
    assert found == {torch.bfloat16}


def test_a_plateau_reduces_the_learning_rate_of_the_proxy_too() -> None:
    plateau = {"name": "plateau", "warmup_epochs": 0.0, "patience": 0, "factor": 0.1}
    made = setup(recipe(schedule=recipe().schedule.model_dump() | plateau))
    selection = made.step_config.selection
    assert selection is not None
    train_one_epoch(made.net, made.batches.epoch(1), made.step_config)
    rate = selection._schedule.value
    for loss in (1.0, 2.0):
        selection.end_epoch(loss)
    assert selection._schedule.value == pytest.approx(0.1 * rate)


def test_the_proxys_loss_is_that_of_its_own_epoch() -> None:
    made = setup(recipe())
    selection = made.step_config.selection
    assert selection is not None
    first, second = list(made.batches.epoch(1))[:2]
    train_one_epoch(made.net, [first], made.step_config)
    selection.end_epoch(1.0)
    with torch.no_grad():
        expected = F.cross_entropy(selection.net(second[0]), second[1])
    metrics = train_one_epoch(made.net, [second], made.step_config)
    assert metrics["proxy_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_an_epoch_reports_the_images_that_it_passes_over() -> None:
    logged: list[Metrics] = []
    made = recipe()
    training = Training(made, label_task("baseline", made, "params.yaml"), TRAIN, VALIDATION, CPU, SINGLE_PROCESS)
    training.run(None, lambda metrics, epoch: logged.append(metrics), lambda train_state: None)
    assert logged[0]["images_per_second"] == pytest.approx(80 / logged[0]["train_seconds"])
    assert 0 <= logged[1]["train/proxy_accuracy"] <= 1
    assert logged[1]["train/proxy_loss"] > 0


def test_a_network_of_another_kind_has_a_proxy_of_its_kind() -> None:
    model = pooling_model(channels=(64, 100), blocks=(0, 3))
    proxy = Selection(keep=0.5, width=0.25, blocks=1).proxy(model)
    assert (proxy.channels, proxy.blocks, proxy.stem) == ((16, 24), (0, 1), "whitening")
    assert Selection(keep=0.5, width=0.01, blocks=0).proxy(model).channels == (8, 8)


@pytest.mark.parametrize(("keep", "count"), [(0.5, 10), (0.33, 7), (0.01, 2), (1.0, 20)])
def test_at_least_two_images_are_learned_from(keep: float, count: int) -> None:
    assert Selection(keep=keep, width=0.25, blocks=1).count(20) == count


def test_a_proxy_that_cannot_be_is_refused_only_where_there_is_one() -> None:
    blocks = SELECTION | {"blocks": 0}
    said = r"selection: the proxy's blocks = \[0, 0\] with downsample = stride, expected: >= 1 in each layer"
    with pytest.raises(ValueError, match=said):
        recipe(selection=blocks)
    assert recipe(selection=blocks | {"keep": 1.0}).selection.blocks == 0
