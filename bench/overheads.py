"""What surrounds a training: commands, a pipeline with nothing to do, the stages apart from training, memory."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.report import alternate, median, record, seconds

HOST = torch.device("cpu")


def overheads() -> None:
    """Commands as a user runs them, in a demo workspace where every stage has run."""
    with tempfile.TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"
        leanresnet(Path(folder), "init", str(demo), "--preset", "demo")
        whole = seconds(lambda: dvc(demo, "repro"), HOST)
        training = sum(_train_seconds(demo).values())
        record("overhead/demo_repro", whole, "s", repetitions=1)
        record("overhead/demo_apart_from_training", whole - training, "s", training=round(training, 1), repetitions=1)
        found = alternate(
            {
                "help": lambda: seconds(lambda: leanresnet(demo, "--help"), HOST),
                "check": lambda: seconds(lambda: leanresnet(demo, "check"), HOST),
                "no_op_repro": lambda: seconds(lambda: dvc(demo, "repro"), HOST),
            },
            5,
        )
        for name, values in found.items():
            record(f"overhead/{name}", median(values), "s", repetitions=5)


def _train_seconds(demo: Path) -> dict[str, float]:
    """Seconds in the training loop, as MLflow has them, by model."""
    script = (
        "import json, mlflow; mlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
        "runs = mlflow.search_runs(search_all_experiments=True)\n"
        "print(json.dumps(dict(zip(runs['tags.model'], runs['metrics.train_seconds']))))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=demo, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def leanresnet(folder: Path, *arguments: str) -> None:
    _run(folder, [sys.executable, "-m", "pipeline", *arguments])


def dvc(folder: Path, *arguments: str) -> None:
    _run(folder, [sys.executable, "-m", "dvc", *arguments])


def _run(folder: Path, command: list[str]) -> None:
    subprocess.run(command, cwd=folder, env=own_environment(), check=True, capture_output=True)


def own_environment() -> dict[str, str]:
    """The environment of this program's commands, without what a user has set for them."""
    scripts = str(Path(sys.executable).parent)
    own = {key: value for key, value in os.environ.items() if not key.startswith(("DVC", "MLFLOW", "LEANRESNET"))}
    return {**own, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}


def peak_bytes(device: torch.device) -> dict[str, int]:
    """Most memory this process has had: resident on the host, allocated on the device.

    Linux keeps the former for each program. `ru_maxrss` would be that of the process that started it, where it is more.
    """
    (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    peak = {"host": int(kilobytes) * 1024}
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device)
    return peak
