"""CIFAR-10's archive: what is read is what was written, and nothing that is in it runs."""

import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import archives
import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from leanresnet.data.cifar import LAYOUTS, pack_folder, read_archive
from leanresnet.data.sources import ARCHIVES, SIZES
from leanresnet.errors import DataError


def test_pixels_labels_and_classes_are_those_written(tmp_path: Path) -> None:
    train, test = read_archive(archives.write_archive(tmp_path / "cifar.tar.gz"))
    written = np.concatenate([archives.pixels(name) for name in archives.TRAIN]).reshape(-1, 3, 32, 32)
    assert np.array_equal(train.images.numpy(), written)
    assert train.labels.tolist() == [label for name in archives.TRAIN for label in archives.labels(name)]
    assert np.array_equal(test.images.numpy(), archives.pixels(archives.TEST).reshape(-1, 3, 32, 32))
    assert test.labels.tolist() == archives.labels(archives.TEST)
    assert train.classes == test.classes == archives.CLASSES
    assert train.dataset == test.dataset == "cifar10"


def test_planes_are_red_green_blue_row_by_row(tmp_path: Path) -> None:
    rows = np.zeros((archives.IMAGES, 3072), np.uint8)
    rows[0, 2 * 1024 + 5 * 32 + 7] = 200
    path = archives.write_archive(tmp_path / "cifar.tar.gz", {"test_batch": archives.batch("test_batch", data=rows)})
    assert read_archive(path)[1].images.nonzero().tolist() == [[0, 2, 5, 7]]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_any_compression_reads_the_same(tmp_path: Path, mode: str) -> None:
    packed = read_archive(archives.write_archive(tmp_path / "packed", mode=mode))
    plain = read_archive(archives.write_archive(tmp_path / "plain", mode="w"))
    assert [split.digest() for split in packed] == [split.digest() for split in plain]


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    extra = [archives.member(archives.FOLDER, tarfile.DIRTYPE), archives.member(f"{archives.FOLDER}/readme.html")]
    assert len(read_archive(archives.write_archive(tmp_path / "cifar.tar.gz", extra=extra))[0]) == 200


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (archives.member("/etc/passwd"), "outside"),
        (archives.member("../data_batch_1"), "outside"),
        (archives.member(f"{archives.FOLDER}/../../evil"), "outside"),
        (archives.member("elsewhere/data_batch_1"), "outside"),
        (archives.member(f"{archives.FOLDER}/a\nb/../x"), "outside"),
        (archives.member(f"{archives.FOLDER}/link", tarfile.SYMTYPE, "/etc/passwd"), "link or a device"),
        (archives.member(f"{archives.FOLDER}/link", tarfile.SYMTYPE, "data_batch_1"), "link or a device"),
        (
            archives.member(f"{archives.FOLDER}/link", tarfile.LNKTYPE, f"{archives.FOLDER}/test_batch"),
            "link or a device",
        ),
        (archives.member(f"{archives.FOLDER}/null", tarfile.CHRTYPE), "link or a device"),
        (archives.member(f"{archives.FOLDER}/disk", tarfile.BLKTYPE), "link or a device"),
        (archives.member(f"{archives.FOLDER}/pipe", tarfile.FIFOTYPE), "link or a device"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else "",
)
def test_a_member_out_of_place_is_refused(tmp_path: Path, info: tarfile.TarInfo, reason: str) -> None:
    path = archives.write_archive(tmp_path / "cifar.tar.gz", extra=[info])
    message = refusal(path)
    assert reason in message
    assert repr(info.name) in message
    assert [path.name for path in tmp_path.iterdir()] == ["cifar.tar.gz"]


@pytest.mark.parametrize("name", archives.MEMBERS)
def test_a_pickle_that_calls_code_is_refused_and_does_not_run(tmp_path: Path, name: str) -> None:
    ran = tmp_path / "ran"
    hostile = archives.calling(f"touch {ran}")
    message = refusal(archives.write_archive(tmp_path / "cifar.tar.gz", {name: hostile}))
    assert name in message
    assert "it calls os.system" in message
    assert not ran.exists()
    pickle.loads(hostile)  # the pickle is armed: a careless reader would have run it
    assert ran.exists()


@pytest.mark.parametrize("name", archives.MEMBERS)
def test_a_missing_member_is_named(tmp_path: Path, name: str) -> None:
    assert f"lacks {archives.FOLDER}/{name}," in refusal(archives.write_archive(tmp_path / "c.tar.gz", {name: None}))


BAD_BATCHES: dict[str, bytes] = {
    "narrow rows": archives.batch("test_batch", data=np.zeros((40, 3071), np.uint8)),
    "images as four dimensions": archives.batch("test_batch", data=np.zeros((40, 3, 32, 32), np.uint8)),
    "another type": archives.batch("test_batch", data=np.zeros((40, 3072), np.int16)),
    "no images": archives.batch("test_batch", data=np.zeros((0, 3072), np.uint8), labels=[]),
    "fewer bytes than rows": archives.batch("test_batch").replace(
        archives.encode(40) + archives.encode(3072), archives.encode(41) + archives.encode(3072)
    ),
    "no pixels": archives.batch("test_batch", data=None),
    "pixels as text": archives.batch("test_batch", data=b"\0" * 3072),
    "no labels": archives.batch("test_batch", labels=None),
    "a label too few": archives.batch("test_batch", labels=[0] * 39),
    "a label of no class": archives.batch("test_batch", labels=[0] * 39 + [10]),
    "a negative label": archives.batch("test_batch", labels=[0] * 39 + [-1]),
    "labels as text": archives.batch("test_batch", labels=[b"cat"] * 40),
    "a list": archives.pickled([1, 2]),
    "an empty file": b"",
    "half a pickle": archives.batch("test_batch")[:5000],
    "no pickle": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_batch_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    message = refusal(archives.write_archive(tmp_path / "cifar.tar.gz", {"test_batch": BAD_BATCHES[name]}))
    assert "test_batch" in message
    assert "expected: " in message


@pytest.mark.parametrize(
    "meta",
    [archives.pickled({b"num_vis": 3072}), archives.pickled({b"label_names": b"cat"}), archives.meta(["cat"] * 11)],
    ids=["no names", "a name for a list", "eleven names"],
)
def test_class_names_that_are_not_ten_are_refused(tmp_path: Path, meta: bytes) -> None:
    assert "class names" in refusal(archives.write_archive(tmp_path / "cifar.tar.gz", {"batches.meta": meta}))


def truncate(content: bytearray) -> None:
    del content[len(content) // 2 :]


def damage(content: bytearray) -> None:
    middle = len(content) // 2
    content[middle:] = b"\xa5" * (len(content) - middle)


def replace_all(content: bytearray) -> None:
    content[:] = b"<html>not found</html>"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("spoil", [truncate, damage, replace_all, bytearray.clear])
def test_a_damaged_archive_is_refused_in_one_line(
    tmp_path: Path, mode: str, spoil: Callable[[bytearray], None]
) -> None:
    path = archives.write_archive(tmp_path / "cifar.tar", mode=mode)
    content = bytearray(path.read_bytes())
    spoil(content)
    path.write_bytes(content)
    refusal(path)


def test_a_missing_archive_and_a_folder_are_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "nowhere.tar.gz")
    refusal(tmp_path)


def test_a_packed_folder_depends_on_its_content_alone(tmp_path: Path) -> None:
    first, second = archives.write_folder(tmp_path / "one"), archives.write_folder(tmp_path / "two")
    for number, name in enumerate(archives.MEMBERS):
        os.utime(second / name, (number, number))
        (second / name).chmod(0o600)
    (second / "readme.html").write_text("not packed")
    assert pack_folder(first) == pack_folder(second)


def test_a_packed_folder_reads_like_the_archive(tmp_path: Path) -> None:
    packed = tmp_path / "packed.tar"
    packed.write_bytes(pack_folder(archives.write_folder(tmp_path / "batches")))
    whole = archives.write_archive(tmp_path / "cifar.tar.gz")
    assert [split.digest() for split in read_archive(packed)] == [split.digest() for split in read_archive(whole)]


def test_a_folder_without_a_batch_is_refused(tmp_path: Path) -> None:
    folder = archives.write_folder(tmp_path / "batches", {"data_batch_4": None})
    with pytest.raises(DataError, match=r"data_batch_4: cannot be read \(No such file or directory\), expected: "):
        pack_folder(folder)


def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path) -> None:
    train, test = read_archive(archives.write_cifar100(tmp_path / "cifar100.tar.gz"), "cifar100")
    assert train.classes == test.classes == tuple(f"fine {number}" for number in range(100))
    assert (train.labels.tolist(), test.labels.tolist()) == (archives.fine("train"), archives.fine("test"))
    assert np.array_equal(test.images.numpy(), archives.pixels(archives.TEST).reshape(-1, 3, 32, 32))
    assert train.dataset == test.dataset == "cifar100"


def test_one_archive_is_not_taken_for_the_other(tmp_path: Path) -> None:
    ten, hundred = archives.write_archive(tmp_path / "ten"), archives.write_cifar100(tmp_path / "hundred")
    with pytest.raises(DataError, match=r"ten: member .* lies outside cifar-100-python/, expected: CIFAR-100's python"):
        read_archive(ten, "cifar100")
    with pytest.raises(DataError, match=r"hundred: member .* lies outside cifar-10-batches-py/, expected: CIFAR-10's"):
        read_archive(hundred)
    few = archives.write_cifar100(tmp_path / "few", names=99)
    with pytest.raises(DataError, match="meta has 99 class names, expected: 100"):
        read_archive(few, "cifar100")


def refusal(path: Path) -> str:
    """The one line with which reading `path` is refused."""
    with pytest.raises(DataError) as caught:
        read_archive(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "expected: " in message
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(("dataset", "official"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_what_is_known_before_an_archive_is_read_is_what_it_holds(dataset: str, official: type[CIFAR10]) -> None:
    assert SIZES[dataset][0] == LAYOUTS[dataset].classes
    assert official.filename.startswith(ARCHIVES[dataset])
