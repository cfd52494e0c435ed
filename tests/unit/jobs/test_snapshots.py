"""States on disk: when they are saved, and that the newest whole one is found, whatever happened to the others."""

import signal
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import files_up_to

from leanresnet.compute.distributed import DistributedContext
from leanresnet.errors import SnapshotError, StoppedError, StorageError
from leanresnet.jobs import snapshots as module
from leanresnet.jobs import train_job
from leanresnet.jobs.snapshots import SnapshotCallback, Snapshots, load_state
from leanresnet.signals import compilation


def filled(folder: Path, count: int = 3) -> Snapshots:
    snapshots = Snapshots(folder / "kept")
    for number in range(count):
        snapshots.save({"number": number, "weights": torch.full((4,), float(number))})
    return snapshots


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [truncate, flip_a_bit, empty, replace_by_a_folder]


def test_the_last_three_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    snapshots = filled(tmp_path, 12)
    assert [path.name[:8] for path in snapshots.paths()] == ["00000010", "00000011", "00000012"]
    state = snapshots.load()
    assert state is not None
    assert state["number"] == 11
    assert torch.equal(state["weights"], torch.full((4,), 11.0))
    assert len(list(snapshots.folder.iterdir())) == 3


def test_nothing_saved_is_no_state(tmp_path: Path) -> None:
    assert Snapshots(tmp_path / "none").load() is None


def test_a_state_of_a_gpu_is_loaded_onto_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a generator may not be on a GPU."""
    with monkeypatch.context() as saving:
        saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        snapshots = filled(tmp_path, 1)
    state = snapshots.load()
    assert state is not None
    assert state["weights"].device == torch.device("cpu")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_falls_back_to_the_one_before_with_one_warning(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshots = filled(tmp_path)
    for count, expected in ((1, 1), (2, 0)):
        damage(snapshots.paths()[-count])
        state = snapshots.load()
        assert state is not None
        assert state["number"] == expected
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert snapshots.paths()[-1].name in error
    damage(snapshots.paths()[0])
    with pytest.raises(SnapshotError, match=r"all 3 snapshots of this training are damaged, expected: "):
        snapshots.load()


def test_a_snapshot_that_was_renamed_is_damaged(tmp_path: Path) -> None:
    snapshots = filled(tmp_path)
    newest = snapshots.paths()[-1]
    newest.rename(newest.with_name(f"00000009-{'0' * 64}.pt"))
    state = snapshots.load()
    assert state is not None
    assert state["number"] == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_after_a_damaged_one_the_next_are_the_newest(damage: Callable[[Path], None], tmp_path: Path) -> None:
    snapshots = filled(tmp_path)
    damage(snapshots.paths()[-1])
    for number in range(4):
        snapshots.save({"number": number})
        assert snapshots.load() == {"number": number}


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    snapshots = filled(tmp_path)
    (snapshots.folder / f".{snapshots.paths()[-1].name}.k2j3").write_bytes(b"half")
    snapshots.save({"number": 3})
    assert len(list(snapshots.folder.iterdir())) == 3


def test_a_disk_that_takes_no_more_is_one_line_with_path_and_bytes_and_costs_no_snapshot(tmp_path: Path) -> None:
    snapshots = filled(tmp_path)
    before = {path: path.read_bytes() for path in snapshots.folder.iterdir()}
    with files_up_to(1000), pytest.raises(StorageError) as caught:
        snapshots.save({"weights": torch.zeros(1000)})
    # A view of a BytesIO that outlives the error is a segmentation fault in the garbage collector of Python 3.12.
    kept = [value for frame, _ in traceback.walk_tb(caught.tb) for value in frame.f_locals.values()]
    assert not [value for value in kept if isinstance(value, memoryview)]
    message = str(caught.value)
    assert str(snapshots.folder) in message
    assert "File too large" in message
    assert int(message.split("takes ")[1].split(" bytes")[0].replace(",", "")) > 4000
    assert {path: path.read_bytes() for path in snapshots.folder.iterdir()} == before


class At:
    """A progress that stands somewhere."""

    device = torch.device("cpu")

    def __init__(self, epoch: int, step: int) -> None:
        self.epoch, self.step = epoch, step

    def state_dict(self) -> dict[str, Any]:
        return {"place": [self.epoch, self.step]}


def places(snapshots: Snapshots) -> Any:
    state = snapshots.load()
    return state and state["progress"]["place"]


def test_a_state_is_saved_after_the_period_and_each_place_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    snapshots = Snapshots(tmp_path / "kept")
    snapshot_callback = SnapshotCallback(snapshots, 60, lambda: None)
    saved = []
    for seconds, train_state in (
        (10, At(1, 1)),
        (59, At(1, 2)),
        (60, At(1, 3)),
        (61, At(2, 0)),
        (119, At(2, 1)),
        (130, At(2, 2)),
        (189, At(2, 3)),
        (190, At(2, 4)),
    ):
        now = 100.0 + seconds
        snapshot_callback(train_state)  # type: ignore[arg-type]
        saved.append(places(snapshots))
    assert saved == [None, None, [1, 3], [1, 3], [1, 3], [2, 2], [2, 2], [2, 4]]
    always = SnapshotCallback(Snapshots(tmp_path / "always"), 0, lambda: None)
    for _ in range(3):
        always(At(1, 3))  # type: ignore[arg-type]
    assert len(Snapshots(tmp_path / "always").paths()) == 1


def test_what_a_state_was_saved_with_is_compared_with_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = Snapshots(tmp_path / "kept")
    callback = SnapshotCallback(snapshots, 0, lambda: None)
    callback.save_latest()
    assert snapshots.paths() == []
    callback(At(1, 1))  # type: ignore[arg-type]
    here = torch.device("cpu")
    assert load_state(snapshots, here) == ({"place": [1, 1]}, None)
    monkeypatch.setattr(torch, "__version__", "1.0")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NONE")
    state, difference = load_state(snapshots, here, DistributedContext(0, 2))
    assert state == {"place": [1, 1]}
    assert difference is not None
    assert [each.partition(":")[0] for each in difference.split("; ")] == ["torch", "instructions", "processes"]


def test_the_latest_state_is_saved_on_request(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "kept")
    callback = SnapshotCallback(snapshots, 1e6, lambda: None)
    callback(At(1, 4))  # type: ignore[arg-type]
    assert places(snapshots) is None
    callback.save_latest()
    assert places(snapshots) == [1, 4]


def test_a_state_that_cannot_be_saved_costs_a_line_but_a_stop_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Snapshots, state: Mapping[str, Any]) -> None:
        raise StorageError("kept: cannot be written (No space left on device)")

    asked: list[signal.Signals] = []
    snapshot_callback = SnapshotCallback(Snapshots(tmp_path / "kept"), 0, lambda: asked[0] if asked else None)
    with monkeypatch.context() as patched:
        patched.setattr(Snapshots, "save", full)
        snapshot_callback(At(1, 1))  # type: ignore[arg-type]
        error = capsys.readouterr().err
        assert (error.count("\n"), "No space left" in error) == (1, True)
        asked.append(signal.SIGTERM)
        with pytest.raises(StorageError):
            snapshot_callback(At(1, 2))  # type: ignore[arg-type]
    with pytest.raises(StoppedError, match=r"^stopped by SIGTERM after epoch 1, step 2; ") as caught:
        snapshot_callback(At(1, 2))  # type: ignore[arg-type]
    assert caught.value.exit_code == 143
    assert places(Snapshots(tmp_path / "kept")) == [1, 2]


def test_the_state_is_saved_before_each_compilation_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[str] = []

    def run(*_: object) -> str:
        for number in (1, 2):
            with compilation():
                assert len(saved) == number
        return "the last state"

    monkeypatch.setattr(train_job, "run_or_name_batch", run)
    callback: Any = SimpleNamespace(save_latest=lambda: saved.append("saved"))
    nothing: Any = None
    assert train_job._run(nothing, nothing, nothing, callback) == "the last state"
    assert len(saved) == 2
