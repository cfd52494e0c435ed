"""The training of one model from the splits to the written and tracked outputs.

The commands `train` and `distill` both call `run_training`. They differ only in the `TrainingTask`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from signal import Signals
from typing import Any

import torch

from leanresnet.compute.device import describe, set_environment
from leanresnet.compute.distributed import distributed_context
from leanresnet.config.schema import Recipe
from leanresnet.data.splits import load_splits
from leanresnet.errors import ConfigError, warn
from leanresnet.files import file_hashes
from leanresnet.jobs.oom import run_or_name_batch
from leanresnet.jobs.progress import Progress
from leanresnet.jobs.snapshots import SnapshotCallback, load_state
from leanresnet.jobs.workdir import FINISHED_KEPT, TrainingWorkdir, open_workdir
from leanresnet.models import checkpoint
from leanresnet.models.complexity import check_budget
from leanresnet.signals import at_a_sudden_end, before_a_compilation, stop_requests
from leanresnet.tracking.journal import new_id
from leanresnet.tracking.log_outputs import log_training, run_metadata
from leanresnet.tracking.run import start_run
from leanresnet.tracking.usage import usage
from leanresnet.training.build import training_threads
from leanresnet.training.fit import Training
from leanresnet.training.results import Outputs, save_results
from leanresnet.training.state import TrainState
from leanresnet.training.tasks import TrainingTask, describe_provenance
from leanresnet.training.validation import Metrics


def run_training(
    name: str,
    recipe: Recipe,
    task: TrainingTask,
    data: tuple[Path, Path],
    outputs: Outputs,
    device: torch.device,
    snapshot_seconds: float,
    extend: bool = False,
) -> None:
    """Train `recipe`, write the model with the weights of the best epoch and the results, and report to MLflow.

    If the same training was stopped earlier, it is resumed in the same MLflow run. In several processes, which torchrun
    starts, only the first one writes and reports.

    Args:
        name: name of the model: baseline, teacher or student.
        recipe: the section of params.yaml.
        task: the loss and the measures.
        data: the files of the training and of the validation split.
        outputs: the folders to write to.
        device: the device of this process.
        snapshot_seconds: time between two snapshots.
        extend: resume from the finished training with the same values but fewer epochs, as a child of its run.

    Raises:
        ConfigError: if the model exceeds its budget, a batch is larger than the split or cannot be divided among the
            processes, or there is no training to extend.
        DataError: if a file of a split is damaged, or both hold the same images.
        StorageError: if a split cannot be read, or the workspace or an output cannot be written.
        DivergedError: if a loss, a metric or a weight is NaN or infinite.
        MemoryLimitError: if a batch does not fit into memory.
        StoppedError: if SIGTERM, SIGINT, SIGHUP or the death of dvc or torchrun stops the training; the state is saved.
        SnapshotError: if the training was stopped earlier and all its snapshots are damaged.
        LostProcessError: if another process of the training ended early.
    """
    train, validation = load_splits(*data)
    check_budget(task.key, recipe.model, recipe.max_parameters, len(train.classes))
    provenance = describe_provenance(name, recipe, task, train, data)
    threads = training_threads(recipe, len(train.classes), device)
    # Until the processes are connected, there is nothing to save, and a signal ends them at once.
    with threads, distributed_context() as processes, stop_requests() as requested:
        _check_batch(recipe, task.key, len(train), data[0], processes.size)
        set_environment(device)
        training = Training(recipe, task, train, validation, device, processes)
        if not processes.is_main_process:
            processes.follow()
            snapshot_callback = SnapshotCallback(None, snapshot_seconds, requested, processes)
            _run(training, None, lambda metrics, step: None, snapshot_callback)
            return

        def asked_while_waiting() -> Signals | None:
            processes.announce(waits=True)
            return requested()

        with open_workdir(provenance, asked_while_waiting) as work:
            processes.announce(waits=False)
            snapshot_callback = SnapshotCallback(work.snapshots, snapshot_seconds, requested, processes)
            start, environment_diff = load_state(work.snapshots, device, processes)
            if start is None and (extend or work.extended_from):
                start, environment_diff = _extend(work, training)
            parent = work.parent(work.extended_from) if work.extended_from else None
            if work.extended_from:
                provenance["params"]["extended_from"] = work.extended_from
            run_id = work.run_id or new_id()
            work.keep_run_id(run_id)
            with start_run(*run_metadata(provenance), run_id) as run, at_a_sudden_end(run.kill):
                # A resumed run logs its history again, because MLflow's database may have been lost or replaced.
                run.log_history(start["history"] if start else [])
                run.set_tags({"device": describe(device), "torch": torch.__version__, "processes": str(processes.size)})
                if parent is not None and parent.run_id is not None:
                    run.log_parent(parent.run_id)
                if environment_diff:
                    warning = f"this training began in another environment, so its bytes may differ: {environment_diff}"
                    warn(warning)
                    run.set_tags({"leanresnet.resumed_from": environment_diff})
                progress = Progress(recipe.epochs, start["history"] if start else [], outputs)

                def log_epoch(metrics: Metrics, epoch: int) -> None:
                    run.log_metrics({**metrics, **usage(device)}, epoch)
                    progress.show(metrics, epoch)

                usage(device)  # the first epoch's load counts from here
                fitted = _run(training, start, log_epoch, snapshot_callback)
                snapshot_callback.save(fitted)
                checkpoint.save_model(fitted.best_weights, recipe.model, train.classes, provenance, outputs.model)
                save_results(fitted.history, fitted.best_epoch, outputs)
                classes = {"train": train.counts(), "validation": validation.counts()}
                log_training(run, checkpoint.load_model(outputs.model), outputs, classes)
            work.finish(file_hashes(outputs.model / checkpoint.WEIGHTS)[0])
            progress.finish(fitted.best_epoch, run.address)


def _check_batch(recipe: Recipe, key: str, images: int, split: Path, processes: int) -> None:
    """Raise ConfigError if there are too few images for a batch, or a batch cannot be divided among the processes.

    Args:
        key: the path of the recipe in params.yaml.
        images: number of training images in the file `split`.
    """
    if recipe.batch_size > images:
        most = f"2 to {images}, the training images of {split}"
        raise ConfigError(f"{key}.batch_size = {recipe.batch_size}: expected: {most}")
    if recipe.batch_size % processes:
        expected = f"a multiple of the {processes} processes that share a batch"
        raise ConfigError(f"{key}.batch_size = {recipe.batch_size}: expected: {expected}")
    kept = recipe.selection.count(recipe.batch_size)
    if kept % processes:
        wrong = f"{key}.selection.keep = {recipe.selection.keep} keeps {kept} images of a batch"
        raise ConfigError(f"{wrong}, expected: a multiple of the {processes} processes that share them")


def _run(
    training: Training,
    start: Mapping[str, Any] | None,
    log_metrics: Callable[[Metrics, int], None],
    snapshot_callback: SnapshotCallback,
) -> TrainState:
    # A signal during a compilation ends the process at once, so the state is saved before each compilation.
    with before_a_compilation(snapshot_callback.save_latest):
        return run_or_name_batch(training, start, log_metrics, snapshot_callback)


def _extend(work: TrainingWorkdir, training: Training) -> tuple[dict[str, Any], str | None]:
    """Return the final state of the finished training with fewer epochs, and how its environment differs from this one.

    Raises:
        ConfigError: if there is no such training.
    """
    parent = work.parent(work.extended_from)
    state, environment_diff = load_state(parent.snapshots, training.device, training.world) if parent else (None, None)
    if parent is None or state is None:
        kept = f"expected: a finished training with the same values but fewer epochs; the last {FINISHED_KEPT} are kept"
        raise ConfigError(f"{training.task.key}.epochs = {work.epochs} with --extend: {kept}")
    work.extend(parent)
    return state, environment_diff
