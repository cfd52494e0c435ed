"""What is compared: the engine of this project, the bare step below it, and the loop that most public trainers use."""

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.report import seconds
from leanresnet.compute.compilation import CompiledFunction
from leanresnet.config.schema import Recipe
from leanresnet.data.splits import Split
from leanresnet.models.resnet import build_model
from leanresnet.training.averaging import MovingAverage
from leanresnet.training.build import build_training
from leanresnet.training.loop import Criterion, train_one_epoch
from leanresnet.training.losses import CrossEntropy
from leanresnet.training.state import EpochMeter

ROOT = Path(__file__).resolve().parent.parent
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
WARM_UP_STEPS = 2


def random_split(count: int) -> Split:
    """Speed does not depend on what the pixels show."""
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(count) % 10, tuple("abcdefghij"), "random")


Mode = Literal["eager", "compiled", "graphs"]
# The value of the recipe's key `compile` for each mode.
COMPILE: dict[Mode, bool | Literal["reduce-overhead"]] = {"eager": False, "compiled": True, "graphs": "reduce-overhead"}


class NotCompiledError(Exception):
    """The compilation fell back to eager execution, so there is nothing to measure."""


@dataclass
class Engine:
    """The project's own loop over `steps` batches an epoch; `run` is one epoch, `bare` as many steps on one batch.

    Args:
        mode: eager; compiled; or graphs, which is compiled and replayed as CUDA graphs.
        criterion: the loss; by default cross entropy on the labels.
    """

    recipe: Recipe
    steps: int
    device: torch.device
    mode: Mode
    criterion: Criterion | None = None

    def __post_init__(self) -> None:
        images = random_split(self.steps * self.recipe.batch_size)
        recipe = Recipe.model_validate(self.recipe.model_dump() | {"compile": COMPILE[self.mode]})
        criterion = self.criterion or CrossEntropy(recipe.label_smoothing)
        setup = build_training(recipe, criterion, images, self.device)
        self.net, self.batches, self.loop = setup.net, setup.batches, setup.step_config
        self.average = MovingAverage(self.net, recipe.ema_decay) if recipe.ema_decay else None
        self.batch = next(iter(self.batches.epoch(1)))
        self.epoch = 0

    @property
    def images(self) -> int:
        return self.steps * self.recipe.batch_size

    def run(self) -> EpochMeter:
        self.epoch += 1
        return self.take(self.batches.epoch(self.epoch))

    def take(self, batches: Iterable[tuple[Tensor, Tensor]]) -> EpochMeter:
        """A step for each of `batches`; the losses are in the result."""
        meter = EpochMeter()
        train_one_epoch(self.net, batches, self.loop, self.average, meter)
        return meter

    def bare(self) -> None:
        """Forward, backward and step, nothing else; the same compiled graph and the same optimizer."""
        self.net.train()
        images, labels = self.batch
        for _ in range(self.steps):
            self.loop.optimizer.zero_grad(set_to_none=True)
            with self.loop.autocast:
                loss, _ = self.loop.objective(images, labels)
            loss.backward()
            self.loop.optimizer.step()

    def warm_up(self) -> None:
        """A few steps: compilation, autotuning, the optimizer's memory.

        Raises:
            NotCompiledError: if the compilation failed, where it was asked for.
        """
        for _ in range(WARM_UP_STEPS):
            self.take([self.batch])
        self.check_compiled()

    def check_compiled(self) -> None:
        """Raise NotCompiledError if the compilation failed, where it was asked for."""
        if isinstance(self.loop.objective, CompiledFunction) and self.loop.objective.failure is not None:
            raise NotCompiledError(self.loop.objective.failure)


class _Pictures(Dataset[tuple[Tensor, int]]):
    """PIL images through torchvision's transforms, one at a time, as torchvision.datasets.CIFAR10 gives them."""

    def __init__(self, split: Split) -> None:
        self.pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[place])), self.labels[place]


class PlainLoop:
    """A DataLoader with 2 workers, torchvision transforms, float32, contiguous, eager: what most public trainers do."""

    def __init__(self, recipe: Recipe, steps: int, device: torch.device) -> None:
        self.steps, self.device, self.batch_size = steps, device, recipe.batch_size
        # The pictures come normalised: with these constants the network changes nothing.
        net = build_model(recipe.model, [0.0] * 3, [1 / 255] * 3, recipe.seed).to(device)
        self.net = net.to(memory_format=torch.contiguous_format).train()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        # One batch more, drawn before the clock starts, so that starting the workers does not count.
        data = _Pictures(random_split((steps + 1) * recipe.batch_size))
        self.loader = DataLoader(
            data,
            recipe.batch_size,
            shuffle=True,
            num_workers=2,
            drop_last=True,
            pin_memory=device.type == "cuda",
            # The default of Linux, which this process, itself spawned, would not take.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )
        self.criterion = nn.CrossEntropyLoss()

    def epoch(self) -> Callable[[], None]:
        """An epoch that is ready to run: its workers have started and delivered the first batch."""
        batches = iter(self.loader)
        self._step(*next(batches))
        return lambda: self._steps(batches)

    def _steps(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        total = 0.0
        for images, labels in batches:
            total += self._step(images, labels)

    def _step(self, images: Tensor, labels: Tensor) -> float:
        images, labels = images.to(self.device), labels.to(self.device)
        self.optimizer.zero_grad()
        loss = self.criterion(self.net(images), labels)
        loss.backward()
        self.optimizer.step()
        return float(loss.item())


class PlainProcess:
    """A plain loop in a process of its own, where no setting of the engine reaches it; a context manager."""

    def __init__(self, recipe: Recipe, steps: int, device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, recipe, steps, device))
        self._images = steps * recipe.batch_size

    def __enter__(self) -> "PlainProcess":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._here.send(False)
        self._process.join()

    def images_a_second(self) -> float:
        """Of one epoch, whose workers have started and delivered before the clock does."""
        self._here.send(True)
        # Waiting in turns notices a child that died.
        while not self._here.poll(1):
            assert self._process.is_alive(), "the plain loop's process ended"
        return self._images / float(self._here.recv())


def _serve(there: Connection, recipe: Recipe, steps: int, device: torch.device) -> None:
    plain = PlainLoop(recipe, steps, device)
    while there.recv():
        there.send(seconds(plain.epoch(), device))
