"""`make torture`: the long form of test_resume.py. Kills and damage at random; it ends at the first loss, non-zero."""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import psutil
from conftest import outside_environment
from test_resume import Whole, assert_is_whole, die, is_dead, newest, prepare, results, the_run, train, wait_for
from test_snapshots import DAMAGES

SEED = 0


@click.command()
@click.option("--kills", default=200, show_default=True, help="SIGKILLs of a training, half of them inside a save.")
@click.option("--damages", default=50, show_default=True, help="Snapshots truncated, changed, emptied or replaced.")
@click.option("--repros", default=20, show_default=True, help="SIGKILLs of `dvc repro`.")
def torture(kills: int, damages: int, repros: int) -> None:
    """Kill and damage trainings; each must end with the bytes and the metrics of the one that nobody touched."""
    choices = random.Random(SEED)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        whole = Whole(root / "whole")
        rows = [
            ("SIGKILL in a training", *_killed(root, whole, kills, choices)),
            ("damaged snapshot", *_damaged(root, whole, damages, choices)),
            ("SIGKILL of dvc repro", *_repros(root, repros, choices)),
        ]
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
        assert die(folder, 2 * choices.randint(5, 12) + 1)[0] == -signal.SIGKILL
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


def _repros(root: Path, count: int, choices: random.Random) -> tuple[int, int]:
    """The demo's baseline; what dvc repro gives when nobody kills it is the measure."""
    environment = outside_environment(LEANRESNET_SNAPSHOT_SECONDS="0", OMP_NUM_THREADS="1")
    repro = ["dvc", "repro", "train@baseline"]

    def space(name: str) -> Path:
        command = ["leanresnet", "init", str(root / name), "--preset", "demo"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return root / name

    def complete(folder: Path) -> None:
        done = subprocess.run(repro, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    untouched = space("untouched")
    complete(untouched)
    kills, trainings = 0, 0
    while kills < count:
        folder = space(f"repro-{trainings}")
        for _ in range(min(choices.randint(1, 4), count - kills)):
            step = newest(folder) + choices.randint(1, 40)
            with subprocess.Popen(
                repro, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as dvc:
                wait_for(lambda dvc=dvc, step=step: newest(folder) >= step or dvc.poll() is not None)  # type: ignore[misc]  # noqa: B023
                children = psutil.Process(dvc.pid).children(recursive=True) if dvc.poll() is None else []
                dvc.kill()
            wait_for(lambda children=children: all(is_dead(child) for child in children), 30)  # type: ignore[misc]
            kills += 1
        complete(folder)
        assert results(folder) == results(untouched)
        assert the_run(folder)[1] == the_run(untouched)[1]
        trainings += 1
        print(f"{kills} kills of dvc repro in {trainings} trainings", file=sys.stderr)
    return kills, trainings


if __name__ == "__main__":
    torture()
