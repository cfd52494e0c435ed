"""What many runs cost: synthetic ones, reported by several processes at once as trainings report theirs."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.report import record
from leanresnet.analysis.comparison import compare
from leanresnet.analysis.runs import RunRecord, find_finished
from leanresnet.config.schema import flatten
from leanresnet.scaffold.presets import load_preset
from leanresnet.tracking import run as reporting
from leanresnet.tracking.connection import DATABASE
from leanresnet.tracking.delivery import sync
from leanresnet.training.tasks import NOT_DISTILLED
from pipeline.workspace import released

SIZE = {"model/parameters": 4_935_242.0, "model/macs": 1.0}


def scale(runs: int, writers: int, epochs: int) -> None:
    """`runs` runs of `epochs` epochs, into a fresh database or the server of MLFLOW_TRACKING_URI; then all are read.

    Each has the params of the default's baseline and the metrics of each epoch. No files are logged, because they go
    to the artifact store and not to the database.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DVC_ROOT"] = folder
        # Two lines a run, where MLflow is a server.
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        database = Path(folder) / DATABASE
        shares = [runs // writers + (number < runs % writers) for number in range(writers)]
        begun = time.perf_counter()
        processes = [
            subprocess.Popen([sys.executable, "-m", "bench", "writer", str(share), str(epochs), str(number)])
            for number, share in enumerate(shares)
        ]
        codes = [process.wait() for process in processes]
        written = time.perf_counter() - begun
        assert codes == [0] * writers, codes
        arrived, left = sync(Path(folder))
        begun = time.perf_counter()
        found = find_finished()
        read = time.perf_counter() - begun
        begun = time.perf_counter()
        compare(found)
        compared = time.perf_counter() - begun
        lost = count_lost(found, runs, epochs)
        context = {"runs": runs, "writers": writers, "epochs": epochs, "later_by_sync": arrived}
        record("scale/lost", lost + left, "runs", **context)
        record("scale/write", runs / written, "runs/s", **context)
        record("scale/read", read, "s", **context)
        record("scale/compare", compared, "s", **context)
        if database.exists():
            record("scale/database", database.stat().st_size / runs, "bytes/run", **context)


def write(runs: int, epochs: int, writer: int) -> None:
    """One writer's share."""
    params = flatten(load_preset("default", released("presets")).params.train.baseline) | NOT_DISTILLED
    for number in range(runs):
        tags = {"model": "baseline", "dataset": "synthetic", "scale.run": f"{writer}-{number}"}
        with reporting.start_run(f"scale-{writer}-{number}", {**params, "seed": number}, tags) as run:
            for epoch in range(1, epochs + 1):
                run.log_metrics(values(epoch), epoch)
            run.log_metrics(SIZE, epochs)


def values(epoch: int) -> dict[str, float]:
    """What a training logs an epoch."""
    names = ["lr", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/best_accuracy"]
    return {name: epoch + place / 10 for place, name in enumerate([*names, "images_per_second", "train_seconds"])}


def count_lost(found: list[RunRecord], runs: int, epochs: int) -> int:
    """How many of the runs are not there, finished, with the last value of each metric and all of one."""
    whole = [run for run in found if run.metrics == values(epochs) | SIZE and len(run.validation()) == epochs]
    return runs - len({run.tags["scale.run"] for run in whole})
