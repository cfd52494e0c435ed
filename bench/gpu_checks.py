"""What has to hold on a GPU: the same bytes or numbers as on a CPU, the same bytes again, and how a training ends.

Each figure is a deviation, and passes if it is at most what stands beside it. A check that raises has failed, and the
next one is still made.
"""

import hashlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.options import AUGMENTATIONS, OPTIONS, Run, changed, small
from bench.overheads import own_environment
from bench.report import check, checking
from bench.trainers import Engine, Mode, random_split
from leanresnet.compute.device import backend_settings, exact_float32
from leanresnet.compute.distributed import SINGLE_PROCESS
from leanresnet.config.schema import Params, Recipe
from leanresnet.data.splits import save_split
from leanresnet.errors import DivergedError, MemoryLimitError, StoppedError
from leanresnet.evaluation.predictions import predict
from leanresnet.jobs.snapshots import Snapshots
from leanresnet.models.resnet import build_model
from leanresnet.scaffold.presets import load_preset
from leanresnet.scaffold.reference import render
from leanresnet.training.fit import Training
from leanresnet.training.loader import EvalBatches, TrainBatches
from leanresnet.training.state import TrainState
from leanresnet.training.tasks import label_task
from pipeline.workspace import released

CPU = torch.device("cpu")
# These compute coordinates or averages in floating point, so a rounding can fall differently.
ROUNDED = {"trivial_augment": 0.01, "rand_augment": 0.01, "progressive": 0.0}
LOSS_DEVIATION, BF16_DEVIATION = 1e-3, 5e-2


def batches(run: Run) -> None:
    """The batches of two epochs, for each augmentation: the share of values that differ from the CPU's."""
    split = random_split(256)
    for name, changes in AUGMENTATIONS.items():
        with checking(f"batches/{name}"):
            recipe = small(changes)
            here, there = (
                TrainBatches(split, recipe.batch_size, recipe.augmentation, 0, device, recipe.progressive_resizing)
                for device in (run.device, CPU)
            )
            parts = [
                (mine.cpu().float(), own.float())
                for epoch in (1, 2)
                for pair in zip(here.epoch(epoch), there.epoch(epoch), strict=True)
                for mine, own in zip(*pair, strict=True)
            ]
            differing = sum(int(((mine - own).abs() > _slack(name)).sum()) for mine, own in parts)
            share = differing / sum(own.numel() for _, own in parts)
            check(f"batches/{name}", share, ROUNDED.get(name, 0.0), "of the values differ")


def _slack(name: str) -> float:
    return 1e-2 if name == "progressive" else 0.0


def float32(run: Run) -> None:
    """Five float32 steps of a small network for each option: the largest relative deviation of a loss from the CPU's.

    Stochastic depth is left out, because it draws from the device's own generator.
    """
    for name, option in OPTIONS.items():
        if name == "stochastic_depth":
            continue
        with checking(f"float32/{name}"):
            recipe = small({**option.changes, "precision": "fp32"})
            here, there = (
                _losses(recipe, 5, device, "eager", option.criterion(recipe, device)) for device in (run.device, CPU)
            )
            # Muon orthogonalizes in bfloat16 where the hardware has it.
            most = BF16_DEVIATION if name == "muon" else LOSS_DEVIATION
            check(f"float32/{name}", _deviation(here, there), most, "relative")


def compiled(run: Run) -> None:
    """Five steps eager against compiled, and against graphs: the largest relative deviation of a loss.

    `fast` learns from whole batches here, because a rounding in bfloat16 changes which images its proxy chooses.
    """
    recipes: dict[str, tuple[Recipe, tuple[Mode, ...]]] = {
        "small": (small({"precision": "fp32"}), ("compiled", "graphs")),
        "distilled": (small({"precision": "fp32"}), ("graphs",)),
        "selection": (small({"precision": "fp32", **OPTIONS["selection"].changes}), ("compiled",)),
        "default": (run.recipe("default"), ("compiled",)),
        "fast": (changed(run.recipe("fast"), {"selection": {"keep": 1.0}}), ("compiled",)),
    }
    for name, (recipe, modes) in recipes.items():
        most = LOSS_DEVIATION if recipe.precision == "fp32" else BF16_DEVIATION
        criterion = OPTIONS[name].criterion(recipe, run.device) if name == "distilled" else None
        with backend_settings(run.device, deterministic=False):
            eager = _steps(recipe, 5, run.device, "eager", criterion)
            for mode in modes:
                with checking(f"{mode}/{name}"):
                    deviation = _deviation(_steps(recipe, 5, run.device, mode, criterion), eager)
                    check(f"{mode}/{name}", deviation, most, "relative")


def _losses(recipe: Recipe, steps: int, device: torch.device, mode: Mode, criterion: Any) -> Tensor:
    with backend_settings(device, deterministic=True), exact_float32():
        torch.set_float32_matmul_precision("highest")
        return _steps(recipe, steps, device, mode, criterion)


def _steps(recipe: Recipe, steps: int, device: torch.device, mode: Mode, criterion: Any) -> Tensor:
    engine = Engine(recipe, steps, device, mode, criterion)
    losses = torch.stack(engine.run().losses).double().cpu()
    # Eager steps would agree with themselves.
    engine.check_compiled()
    return losses


def _deviation(these: Tensor, those: Tensor) -> float:
    return float(((these - those).abs() / those.abs()).max())


def deterministic(run: Run) -> None:
    """With `deterministic`, a training again and one resumed in mid-epoch: 0 where all bytes are those of the first."""
    recipes = {
        "default": changed(run.recipe("default"), {"ema_decay": 0.99, "stochastic_depth": 0.2, "compile": False}),
        "fast": changed(run.recipe("fast"), {"compile": False, "augmentation": {"mix": "mixup"}}),
        "policy": small({"augmentation": {"auto_augment": "trivial_augment"}, "sam": {"rho": 0.5}, "compile": False}),
        "compiled": small({"compile": True, "selection": {"keep": 0.5}}),
    }
    for name, recipe in recipes.items():
        recipe = changed(recipe, {"epochs": 2, "deterministic": True, "schedule": {"warmup_epochs": 0.2}})
        with checking(f"deterministic/{name}"), tempfile.TemporaryDirectory() as folder:
            snapshots = Snapshots(Path(folder))
            first = _train(recipe, run.device, None, snapshots)
            middle = snapshots.load()
            assert middle is not None, "the first training saved no state to resume from"
            for kind, start in (("again", None), ("resumed", middle)):
                other = _train(recipe, run.device, start, snapshots)
                check(f"deterministic/{name}_{kind}", float(first != other), 0.0, "differs")


def _train(recipe: Recipe, device: torch.device, start: Any, snapshots: Snapshots) -> str:
    """SHA-256 of the state after two epochs of four steps; the state after the second one's second step is saved."""
    train, validation = random_split(4 * recipe.batch_size), random_split(64)

    def keep(state: TrainState) -> None:
        if state.epoch == 2 and state.step == 2:
            snapshots.save(state.state_dict())

    training = Training(recipe, label_task("baseline", recipe, "bench"), train, validation, device, SINGLE_PROCESS)
    state = training.run(start, lambda metrics, epoch: None, keep).state_dict()
    content = hashlib.sha256()
    for name in ("net", "optimizer", "average", "selection", "history", "best_weights"):
        for leaf in _leaves(state.get(name)):
            content.update(leaf)
    return content.hexdigest()


def _leaves(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield value.detach().cpu().contiguous().numpy().tobytes()
    elif isinstance(value, dict):
        for key in value:
            yield from _leaves(value[key])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)
    else:
        yield repr(value).encode()


def nan(run: Run) -> None:
    """Steps between a loss that is NaN and the error that says so."""
    with checking("nan/steps_until_seen"), backend_settings(run.device, deterministic=False):
        trainer = Engine(small({}), 4, run.device, "eager")
        taken: list[int] = []

        def spoilt() -> Iterator[tuple[Tensor, Tensor]]:
            for number, batch in enumerate(trainer.batches.epoch(1)):
                if number == 1:
                    with torch.no_grad():
                        next(trainer.net.parameters()).fill_(torch.nan)
                taken.append(number)
                yield batch

        with suppress(DivergedError):
            trainer.take(spoilt())
        # On a GPU a loss is read while the next step runs; were it never seen, all four steps would be taken.
        check("nan/steps_until_seen", taken[-1] - 1, 1, "steps")


def logits(run: Run) -> None:
    """What `evaluate` predicts, in float32: the largest deviation of a probability from the CPU's."""
    split = random_split(200)
    for name in ("default", "fast"):
        with checking(f"logits/{name}"), exact_float32():
            recipe = run.recipe(name)
            net = build_model(recipe.model, [0.5] * 3, [0.25] * 3, 0, images=split.images)
            there = predict(net, EvalBatches(split, 100, CPU)).probabilities
            here = predict(net.to(run.device), EvalBatches(split, 100, run.device)).probabilities
            check(f"logits/{name}", float((here - there).abs().max()), 1e-4, "of a probability")


def out_of_memory(run: Run) -> None:
    """`leanresnet train` with a batch far too large: the difference of its exit code from that of the error."""
    with checking("out_of_memory/exit_code"), tempfile.TemporaryDirectory() as folder:
        # An image takes 2.9 MB: a step keeps the input and the output of each convolution, in bfloat16.
        images = 1024 if run.dry else torch.cuda.mem_get_info(run.device)[1] // 2**21
        command = _training_in(Path(folder), images, {"batch_size": images, "compile": False})
        if run.dry:
            # On a CPU a limit of this process stands in for the memory of a GPU.
            command = ["prlimit", f"--data={2500 * 2**20}", *command]
        done = subprocess.run(_on(command, run), cwd=folder, env=own_environment())
        check("out_of_memory/exit_code", abs(done.returncode - MemoryLimitError.exit_code), 0, "from the right one")


def stopped_compilation(run: Run) -> None:
    """SIGTERM while `leanresnet train` compiles: its exit code, and the seconds until it has ended."""
    with checking("stopped_compilation/exit_code"), tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        command = _on(_training_in(Path(folder), 1024, {"compile": True}), run)
        environment = own_environment() | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
        with subprocess.Popen(command, cwd=folder, env=environment) as process:
            # The compiler's first file shows that it is at work.
            while process.poll() is None and not any(file.is_file() for file in cache.rglob("*")):
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            begun = time.perf_counter()
            code = process.wait()
        check("stopped_compilation/seconds", time.perf_counter() - begun, 10.0, "s")
        right = StoppedError("", signal.SIGTERM).exit_code
        check("stopped_compilation/exit_code", abs(code - right), 0, "from the right one")


def _training_in(folder: Path, images: int, changes: dict[str, Any]) -> list[str]:
    """A workspace with random images and the default's recipe with these changes, and the command that trains there."""
    split = random_split(images)
    save_split(split, folder / "train.safetensors")
    save_split(random_split(100), folder / "validation.safetensors")
    values = load_preset("default", released("presets")).params.model_dump()
    values["train"]["baseline"] |= changes
    (folder / "params.yaml").write_text(render(Params.model_validate(values), "A benchmark."))
    data = ["--train", "train.safetensors", "--validation", "validation.safetensors"]
    return [sys.executable, "-m", "leanresnet", "train", "baseline", *data, "--model", "model", "--results", "results"]


def _on(command: list[str], run: Run) -> list[str]:
    return [*command, "--device", str(run.device)]


def synchronisation(run: Run) -> None:
    """20 steps of each option, in which anything that waits for the GPU is an error."""
    for name, option in OPTIONS.items():
        with checking(f"synchronisation/{name}"), backend_settings(run.device, deterministic=False):
            recipe = small(option.changes)
            trainer = Engine(recipe, 3 if run.dry else 21, run.device, "eager", option.criterion(recipe, run.device))
            trainer.warm_up()
            try:
                trainer.take(_watched(trainer.batches.epoch(1), run.device))
            finally:
                _forbid_waiting(run.device, False)
            check(f"synchronisation/{name}", 0, 0, "waits")


def _watched(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Forbid waiting in all steps but the first, before which the epoch's draws go to the GPU."""
    for number, batch in enumerate(batches):
        yield batch
        if number == 0:
            _forbid_waiting(device, True)
    # The end of an epoch waits.
    _forbid_waiting(device, False)


def _forbid_waiting(device: torch.device, forbidden: bool) -> None:
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error" if forbidden else "default")
