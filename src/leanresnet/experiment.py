"""One model as one experiment: fit, keep the best epoch, write the outputs, track it all.

`train` and `distill` are both one call to `run_experiment`; they differ in the criterion
they hand over and in what they measure on validation.
"""

from pathlib import Path
from typing import Any

import torch

from leanresnet import checkpoint, reporting
from leanresnet.config import Recipe, flatten
from leanresnet.data.splits import load_splits
from leanresnet.device import describe
from leanresnet.distributed import world
from leanresnet.errors import ConfigError, warn
from leanresnet.files import file_hashes
from leanresnet.interruption import at_a_sudden_end, stop_requests
from leanresnet.journal import new_id
from leanresnet.models.budget import check_budget
from leanresnet.outputs import Outputs, described, log_outputs, save_results
from leanresnet.training import Lesson, Training
from leanresnet.work import FINISHED_KEPT, Keeper, Work, load_state, work_on


def run_experiment(
    name: str,
    recipe: Recipe,
    lesson: Lesson,
    data: tuple[Path, Path],
    outputs: Outputs,
    device: torch.device,
    seconds: float,
    extend: bool = False,
) -> None:
    """Train `recipe` and write the model, its history and its summary.

    A training of the same that was stopped goes on, in the same MLflow run. Of several processes, which
    torchrun starts, the first one writes and reports.

    Args:
        data: the files of the training and of the validation split.
        seconds: between two snapshots of a training.
        extend: go on from the finished training of the same for fewer epochs, as a child of its run.

    Raises:
        ConfigError: the model exceeds its budget, a batch is larger than the split, or there is nothing to extend.
        DivergedError: a loss, a metric or a weight became NaN or infinite.
        MemoryLimitError: a batch does not fit into memory.
        StoppedError: by SIGTERM, SIGINT, SIGHUP or the death of dvc; the state is kept.
        SnapshotError: of a training that was stopped nothing whole is left.
        LostProcessError: one of several processes ended before its time.
    """
    check_budget(lesson.key, recipe.model, recipe.budget)
    train, validation = load_splits(*data)
    if recipe.batch_size > len(train):
        most = f"2 to {len(train)}, the training images of {data[0]}"
        raise ConfigError(f"{lesson.key}.batch_size = {recipe.batch_size}: accepted: {most}")
    made_by: dict[str, Any] = {
        "name": name,
        "stage": lesson.stage,
        "params": flatten(recipe) | lesson.params,
        "dataset": train.dataset,
        "train_md5": file_hashes(data[0])[0],
        "validation_md5": file_hashes(data[1])[0],
        "teacher_sha256": lesson.teacher_sha256,
    }
    with stop_requests() as requested, world() as processes:
        if recipe.batch_size % processes.size:
            accepted = f"a multiple of the {processes.size} processes that share a batch"
            raise ConfigError(f"{lesson.key}.batch_size = {recipe.batch_size}: accepted: {accepted}")
        training = Training(recipe, lesson, train, validation, device, processes)
        if not processes.leads:
            training.run(None, lambda metrics, step: None, Keeper(None, seconds, requested, processes))
            return
        with work_on(made_by, requested) as work:
            keeper = Keeper(work.snapshots, seconds, requested, processes)
            start, elsewhere = load_state(work.snapshots, device, processes)
            if start is None and (extend or work.extended_from):
                start, elsewhere = _extend(work, training)
            parent = work.parent(work.extended_from) if work.extended_from else None
            if work.extended_from:
                made_by["extended_from"] = work.extended_from
            run_id = work.run_id or new_id()
            work.keep_run_id(run_id)
            with reporting.start_run(*described(made_by), run_id) as run, at_a_sudden_end(run.kill):
                # Whatever became of the database since.
                run.log_history(start["history"] if start else [])
                run.set_tags({"device": describe(device), "torch": torch.__version__, "processes": str(processes.size)})
                if parent is not None and parent.run_id is not None:
                    run.log_parent(parent.run_id)
                if elsewhere:
                    warning = f"this training began elsewhere, so its bytes may differ: {elsewhere}"
                    warn(warning)
                    run.set_tags({"leanresnet.resumed_from": elsewhere})
                fitted = training.run(start, run.log_metrics, keeper)
                keeper.save(fitted)
                checkpoint.save_model(fitted.best_weights, recipe.model, train.classes, made_by, outputs.model)
                save_results(fitted.history, fitted.best_epoch, outputs)
                log_outputs(run, outputs)
            work.finish(file_hashes(outputs.model / checkpoint.WEIGHTS)[0])


def _extend(work: Work, training: Training) -> tuple[dict[str, Any], str | None]:
    """The last state of the finished training with fewer epochs, and in what this machine differs."""
    parent = work.parent(work.extended_from)
    state, elsewhere = load_state(parent.snapshots, training.device, training.world) if parent else (None, None)
    if parent is None or state is None:
        kept = f"accepted: with a finished training of the same but fewer epochs; the last {FINISHED_KEPT} are kept"
        raise ConfigError(f"{training.lesson.key}.epochs = {work.epochs} with --extend: {kept}")
    work.extend(parent)
    return state, elsewhere
