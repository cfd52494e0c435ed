"""Files that are whole or absent, and the same bytes for the same content."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from safetensors import safe_open

from leanresnet.errors import ConfigError, DataError, StorageError
from leanresnet.files import (
    atomic_write,
    file_hashes,
    load_json,
    save_csv,
    save_figure,
    save_json,
    save_safetensors,
    save_text,
    workspace,
)


def write_and_fail(path: Path, error: BaseException) -> None:
    with atomic_write(path) as file:
        file.write(b"half of it")
        raise error


def test_a_file_appears_whole_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    with atomic_write(path) as file:
        file.write(b"all ")
        assert not path.exists()
        file.write(b"of it")
    assert path.read_bytes() == b"all of it"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_and_fail(tmp_path / "file.bin", error())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_content(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.bin"
    save_text("old", path)
    with pytest.raises(error):
        write_and_fail(path, error())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_content_stays_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    save_text("old", path)
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_power_cut_finds_the_content_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is flushed under another name, and the folder after the renaming."""
    path, flushed = tmp_path / "file.bin", []

    def fsync(descriptor: int) -> None:
        flushed.append((os.path.samestat(os.fstat(descriptor), tmp_path.stat()), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    save_text("text", path)
    assert flushed == [(False, False), (True, True)]


def test_a_full_disk_is_reported_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with pytest.raises(StorageError, match=r"file\.bin: cannot be written \(No space left on device\)"):
        write_and_fail(path, OSError(28, os.strerror(28)))
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_relative_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not by the name of the partial file."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()

    def refuse(path: Path, mode: int) -> None:
        raise OSError(30, os.strerror(30), str(path.absolute()))

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(StorageError, match=r"^results/a\.json: cannot be written \(Read-only file system\)"):
        save_text("text", Path("results/a.json"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=rf"{tmp_path}/file\S*: cannot be written \((File exists|Not a directory)\)"):
        save_text("text", tmp_path / "file" / "below")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"/folder: cannot be written \(Is a directory\)"):
        save_text("text", tmp_path / "folder")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_files_have_the_permissions_that_open_would_give(tmp_path: Path) -> None:
    script = (
        "import leanresnet.files, pathlib; leanresnet.files.save_text('text', pathlib.Path('file')); open('other', 'w')"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, umask=0o027, check=True)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "other")]
    assert modes == [0o640, 0o640]


def test_json_comes_back(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None], "b": {"c": "café"}}
    save_json(content, tmp_path / "file.json")
    assert load_json(tmp_path / "file.json") == content
    assert (tmp_path / "file.json").read_text().endswith("}\n")


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.json: cannot be read \(No such file"):
        load_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(StorageError, match=r"half\.json: not valid JSON"):
        load_json(tmp_path / "half.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(StorageError, match=r"bytes\.json: not valid JSON"):
        load_json(tmp_path / "bytes.json")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_has_not_is_neither_written_nor_read(tmp_path: Path, number: float) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(DataError, match=r"file\.json: a number is NaN or infinite, expected: finite numbers"):
        save_json({"a": [number]}, path)
    assert not list(tmp_path.iterdir())
    path.write_text(json.dumps({"a": [number]}))
    with pytest.raises(StorageError, match=r"file\.json: not valid JSON \(-?(NaN|Infinity) is not a number\)"):
        load_json(path)


def test_csv_has_unix_line_ends_and_quotes(tmp_path: Path) -> None:
    save_csv(["true", "predicted"], [["cat", 1], ["a,b", 0.5]], tmp_path / "file.csv")
    assert (tmp_path / "file.csv").read_bytes() == b'true,predicted\ncat,1\n"a,b",0.5\n'


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"images": torch.arange(24, dtype=torch.uint8).view(2, 3, 4), "labels": torch.tensor([5, -6])}
    about = {"zebra": "caf\u00e9", "apple": 'a "quoted" \\ one\n', "maize": ""}
    save_safetensors(tensors, tmp_path / "file.safetensors", about)
    with safe_open(tmp_path / "file.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["about"]) == about
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118
            name: tensor.tolist() for name, tensor in tensors.items()
        }


def test_tensors_need_no_metadata(tmp_path: Path) -> None:
    save_safetensors({"a": torch.ones(3)}, tmp_path / "file.safetensors")
    with safe_open(tmp_path / "file.safetensors", framework="pt") as file:
        assert file.metadata() is None
        assert file.get_tensor("a").tolist() == [1, 1, 1]


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    """safetensors seeds the order of metadata anew for each call, so one repetition would not show it."""
    about = {str(number): "value" for number in (7, 3, 9, 1, 8, 2)}
    for repetition in range(8):
        save_safetensors({"a": torch.ones(3)}, tmp_path / str(repetition), about)
    assert len({(tmp_path / str(repetition)).read_bytes() for repetition in range(8)}) == 1


def figure(height: float) -> Figure:
    drawn = Figure(figsize=(3, 2), layout="constrained")
    drawn.add_subplot().plot([0, height, 1], label="line")
    return drawn


def test_the_same_figure_is_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_figure(figure(1), tmp_path / "first.png")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    save_figure(figure(1), tmp_path / "second.png")
    save_figure(figure(2), tmp_path / "other.png")
    content = (tmp_path / "first.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content == (tmp_path / "second.png").read_bytes()
    assert content != (tmp_path / "other.png").read_bytes()
    assert b"tEXt" not in content
    assert b"atplotlib" not in content


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_hashes_equal_hashlib(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    md5 = hashlib.md5(content[:size], usedforsecurity=False).hexdigest()
    assert file_hashes(tmp_path / "file") == (md5, hashlib.sha256(content[:size]).hexdigest())


def test_hashing_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none: cannot be read \(No such file"):
        file_hashes(tmp_path / "none")
    with pytest.raises(StorageError, match=r"cannot be read \(Is a directory\)"):
        file_hashes(tmp_path)


def test_the_workspace_is_dvcs_root_or_the_nearest_folder_with_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "results" / "student"
    below.mkdir(parents=True)
    (tmp_path / "params.yaml").touch()
    for folder in (tmp_path, below):
        monkeypatch.chdir(folder)
        assert workspace() == tmp_path.resolve()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    assert workspace() == (tmp_path / "root").resolve()


def test_outside_of_a_workspace_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"{tmp_path}: no workspace, expected: a folder with params.yaml"):
        workspace()
