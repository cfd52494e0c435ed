"""The folder with source.json in which the download stage stores a data set for the split stage."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from leanresnet.config.schema import Download
from leanresnet.data import download
from leanresnet.errors import DataError, StorageError
from leanresnet.files import file_hashes, load_json, save_bytes, save_json, workspace

if TYPE_CHECKING:
    from leanresnet.data.splits import Split

DESCRIPTION, ARCHIVE = "source.json", "cifar-10-python.tar"


def fetch_source(settings: Download, folder: Path, local: Path | None, stated_sha256: str | None) -> None:
    """Store the verified data set in `folder`.

    Args:
        settings: the section of params.yaml.
        folder: where to store it.
        local: an archive or a folder of batches to use instead of a download, or None.
        stated_sha256: the expected checksum of the local copy; None for the official checksums.

    Raises:
        DataError: if the data set cannot be downloaded, or its bytes are not the expected ones.
        StorageError: if a file cannot be read or written.
    """
    if settings.dataset == "digits":
        save_json({"dataset": "digits"}, folder / DESCRIPTION)
        return
    archive = folder / ARCHIVE
    if local is None:
        # The download is kept in the workspace, so that a second run of the stage needs no network.
        kept = workspace() / ".work" / "downloads" / settings.sha256
        try:
            download.check(kept, settings.size, settings.md5, settings.sha256)
        except (DataError, StorageError):
            part = kept.with_suffix(".part")
            download.fetch(settings.mirrors, settings, part).replace(kept)
        download.copy(kept, archive)
    elif local.is_dir():
        _take_folder(local, archive, stated_sha256)
    else:
        _take_archive(local, archive, settings, stated_sha256)
    md5, sha256 = file_hashes(archive)
    save_json(
        {"dataset": "cifar10", "archive": archive.name, "size": archive.stat().st_size, "md5": md5, "sha256": sha256},
        folder / DESCRIPTION,
    )


def read_source(folder: Path) -> "tuple[Split, Split]":
    """Return the training and the test images that `fetch_source` stored.

    Raises:
        StorageError: if source.json cannot be read.
        DataError: if the folder does not hold a data set, or it is damaged.
    """
    about = load_json(folder / DESCRIPTION)
    match about:
        case {"dataset": "digits"}:
            # These imports take a second or two, and neither the download nor the other data set needs them.
            from leanresnet.data import digits

            return digits.read_digits()
        case {"dataset": "cifar10", "archive": name} if name == ARCHIVE:
            from leanresnet.data import cifar

            return cifar.read_archive(folder / ARCHIVE)
    raise DataError(f"{folder / DESCRIPTION}: not a source, expected: a file that `leanresnet download` wrote")


def _take_archive(local: Path, archive: Path, settings: Download, stated: str | None) -> None:
    if not local.is_file():
        raise DataError(f"{local}: no such file or directory, expected: CIFAR-10's archive or its unpacked batches")
    if stated is None:
        download.check(local, settings.size, settings.md5, settings.sha256)
    else:
        download.check_stated(local, file_hashes(local)[1], stated)
    download.copy(local, archive)


def _take_folder(local: Path, archive: Path, stated: str | None) -> None:
    from leanresnet.data import cifar

    inner = local / cifar.FOLDER
    folder = inner if inner.is_dir() else local
    packed = cifar.pack_folder(folder)
    if stated is None:
        for name, md5 in cifar.MEMBER_MD5.items():
            found = file_hashes(folder / name)[0]
            if found != md5:
                raise DataError(f"{folder / name}: md5 {found}, expected: {md5}, or a checksum stated by --sha256")
    else:
        download.check_stated(local, hashlib.sha256(packed).hexdigest(), stated)
    save_bytes(packed, archive)
