"""`make torture`, the long form of test_resume.py: kills and damage at random. It ends at the first loss, non-zero."""

import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import ClassVar

import click
import psutil
from conftest import HELD, outside_environment
from databases import client_of, runs_of
from test_resume import Whole, assert_is_whole, die, is_dead, newest, prepare, results, the_run, train
from test_snapshots import DAMAGES
from waiting import wait_for

SEED = 0


@click.command()
@click.option("--kills", default=200, show_default=True, help="SIGKILLs of a training, half of them inside a save.")
@click.option("--damages", default=50, show_default=True, help="Snapshots truncated, changed, emptied or replaced.")
@click.option("--repros", default=20, show_default=True, help="SIGKILLs of `dvc repro`.")
@click.option("--at-once", default=5, show_default=True, help="Times two `dvc repro` in one workspace.")
@click.option("--workers", default=8, show_default=True, help="Of DVC's queue, on a fresh database.")
@click.option("--same", default=5, show_default=True, help="Trainings of one seed, eager and again compiled.")
def torture(kills: int, damages: int, repros: int, at_once: int, workers: int, same: int) -> None:
    """Kill and damage trainings; each must end with the bytes and the metrics of the one that nobody touched."""
    choices = random.Random(SEED)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        whole, demo = cache(lambda: Whole(root / "whole")), cache(lambda: Demo(root))
        parts = {
            "SIGKILL in a training": (kills, lambda: _killed(root, whole(), kills, choices)),
            "damaged snapshot": (damages, lambda: _damaged(root, whole(), damages, choices)),
            "SIGKILL of dvc repro": (repros, lambda: _repros(demo(), repros, choices)),
            "two dvc repro at once": (at_once, lambda: _at_once(demo(), at_once)),
            "worker of DVC's queue": (workers, lambda: _queue(demo(), workers)),
            "same seed, eager": (same, lambda: _same(root / "eager", same, compiled=False)),
            "same seed, compiled": (same, lambda: _same(root / "compiled", same, compiled=True)),
        }
        rows = [(what, *part()) for what, (count, part) in parts.items() if count]
    click.echo(f"{'what':24}{'times':>8}{'trainings':>12}{'lost':>6}")
    for what, times, trainings in rows:
        click.echo(f"{what:24}{times:>8}{trainings:>12}{0:>6}")
    click.echo(f"{(time.monotonic() - begun) / 60:.0f} minutes, choices from seed {SEED}")


def _killed(root: Path, whole: Whole, count: int, choices: random.Random) -> tuple[int, int]:
    kills, trainings = 0, 0
    while kills < count:
        folder = prepare(root / f"killed-{trainings}")
        for _ in range(min(choices.randint(1, 8), count - kills)):
            # The odd calls are in the middle of a file, a step or some later ones.
            inside = kills % 2 == 0
            how = {"SIGNAL_AT": 2 * choices.randint(1, 6) + 1} if inside else {"SIGNAL_AFTER": choices.uniform(0, 0.3)}
            code, error = train(folder, SIGNAL=int(signal.SIGKILL), **how)
            assert code in (-signal.SIGKILL, 0), error
            kills += code != 0
            if code == 0:
                break
        assert train(folder) == (0, "")
        assert_is_whole(folder, whole)
        trainings += 1
        print(f"{kills} kills in {trainings} trainings", file=sys.stderr)
    return kills, trainings


def _damaged(root: Path, whole: Whole, count: int, choices: random.Random) -> tuple[int, int]:
    damaged, trainings = 0, 0
    while damaged < count:
        folder = prepare(root / f"damaged-{trainings}")
        assert die(folder, 2 * choices.randint(6, 14) + 1)[0] == -signal.SIGKILL
        snapshots = sorted(folder.glob(".work/training/*/*.pt"))
        for path in snapshots[-min(choices.randint(1, 2), count - damaged) :]:
            choices.choice(DAMAGES)(path)
            damaged += 1
        code, error = train(folder)
        assert (code, error.count("\n")) == (0, 1), error
        assert_is_whole(folder, whole)
        trainings += 1
        print(f"{damaged} damaged in {trainings} trainings", file=sys.stderr)
    return damaged, trainings


class Demo:
    """Workspaces of the demo's baseline, and what `dvc repro` gives there when nobody disturbs it."""

    repro: ClassVar = ["dvc", "repro", "train@baseline"]

    def __init__(self, root: Path) -> None:
        self._root = root
        self.environment = outside_environment(LEANRESNET_SNAPSHOT_SECONDS="0", OMP_NUM_THREADS="1")
        untouched = self.space("untouched")
        self.complete(untouched)
        self.results, self.metrics = results(untouched), the_run(untouched)[1]

    def run(self, folder: Path, *command: str) -> str:
        done = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def space(self, name: str) -> Path:
        self.run(self._root, "leanresnet", "init", str(self._root / name), "--preset", "demo")
        return self._root / name

    def complete(self, folder: Path) -> None:
        self.run(folder, *self.repro)

    def start(self, folder: Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.repro, cwd=folder, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def assert_is_whole(self, folder: Path) -> None:
        assert results(folder) == self.results
        assert the_run(folder)[1] == self.metrics


def _repros(demo: Demo, count: int, choices: random.Random) -> tuple[int, int]:
    kills, trainings = 0, 0
    while kills < count:
        folder = demo.space(f"repro-{trainings}")
        for _ in range(min(choices.randint(1, 4), count - kills)):
            step = newest(folder) + choices.randint(1, 40)
            with demo.start(folder) as dvc:
                wait_for(lambda dvc=dvc, step=step: newest(folder) >= step or dvc.poll() is not None)  # type: ignore[misc]  # noqa: B023
                children = psutil.Process(dvc.pid).children(recursive=True) if dvc.poll() is None else []
                dvc.kill()
                wait_for(lambda children=children: all(is_dead(child) for child in children))  # type: ignore[misc]
            kills += 1
        demo.complete(folder)
        demo.assert_is_whole(folder)
        trainings += 1
        print(f"{kills} kills of dvc repro in {trainings} trainings", file=sys.stderr)
    return kills, trainings


def _at_once(demo: Demo, count: int) -> tuple[int, int]:
    """Two `dvc repro` in one workspace: DVC lets one of them do the work, or both in turn."""
    for number in range(count):
        folder = demo.space(f"at-once-{number}")
        both = [demo.start(folder) for _ in range(2)]
        errors = [dvc.communicate()[1] for dvc in both]
        codes = [dvc.returncode for dvc in both]
        assert 0 in codes, errors
        for code, error in zip(codes, errors, strict=True):
            assert code == 0 or HELD.search(error), error
        demo.complete(folder)
        demo.assert_is_whole(folder)
        print(f"{number + 1} times two dvc repro at once", file=sys.stderr)
    return 2 * count, count


def _queue(demo: Demo, workers: int) -> tuple[int, int]:
    """As many workers of DVC's queue as there are seeds, on a database that none of them has made yet."""
    folder, epochs = demo.space("queue"), 4
    demo.run(folder, "dvc", "repro", "split")
    demo.run(folder, "dvc", "config", "core.no_scm", "false")
    (folder / ".dvc" / ".gitignore").write_text("/cache\n/tmp\n/config.local\n")
    demo.run(folder, "git", "init", "--quiet")
    demo.run(folder, "git", "add", "--all")
    author = ["-c", "user.name=torture", "-c", "user.email=torture@localhost"]
    demo.run(folder, "git", *author, "commit", "--quiet", "--message", "demo")
    for seed in range(workers):
        values = [f"train.baseline.{value}" for value in (f"seed={seed}", f"epochs={epochs}")]
        options = [option for value in values for option in ("--set-param", value)]
        demo.run(folder, "dvc", "exp", "run", "--quiet", "--queue", *options, "train@baseline")
    assert not (folder / "mlflow.db").exists()
    demo.run(folder, "dvc", "queue", "start", "--jobs", str(workers))

    def ended() -> list[str]:
        return re.findall("Success|Failed", demo.run(folder, "dvc", "queue", "status"))

    wait_for(lambda: len(ended()) == workers, pause=5)
    assert ended() == ["Success"] * workers
    demo.run(folder, "dvc", "queue", "stop")
    demo.run(folder, "leanresnet", "sync")
    client, found = client_of(folder), runs_of(folder)
    assert sorted(int(run.data.params["seed"]) for run in found) == list(range(workers))
    for run in found:
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert [metric.step for metric in history] == list(range(1, epochs + 1))
    return workers, workers


def _same(root: Path, count: int, compiled: bool) -> tuple[int, int]:
    """Each compiles anew: code from a cache would be the same anyhow."""
    found = []
    for number in range(count):
        folder = prepare(root / str(number), compile=compiled)
        code, error = train(folder, TORCHINDUCTOR_CACHE_DIR=folder / "compiler", LEANRESNET_SNAPSHOT_SECONDS=60)
        assert code == 0, error
        assert any((folder / "compiler").rglob("*.so")) == compiled
        found.append(results(folder))
        assert found[-1] == found[0]
        print(f"{number + 1} of the same seed in {root.name}", file=sys.stderr)
    return count, count


if __name__ == "__main__":
    torture()
