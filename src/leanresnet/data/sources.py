"""The folder with source.json in which the download stage stores a data set for the split stage."""

import hashlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from leanresnet.config.schema import Download
from leanresnet.data import download
from leanresnet.errors import DataError, StorageError, warn
from leanresnet.files import file_hashes, load_json, not_written, save_bytes, save_json, workspace

if TYPE_CHECKING:
    from leanresnet.data.splits import Split

DESCRIPTION, IMAGES = "source.json", "images.safetensors"
# Numbers of classes and of training images, which are known without the imports that reading takes.
SIZES = {"cifar10": (10, 50_000), "cifar100": (100, 50_000), "digits": (10, 1_437)}
ARCHIVES = {"cifar10": "cifar-10-python.tar", "cifar100": "cifar-100-python.tar"}


def fetch_source(settings: Download, folder: Path, local: Path | None) -> None:
    """Store the verified data set in `folder`.

    Args:
        settings: the section of params.yaml.
        folder: where to store it.
        local: an archive or a folder of batches to use instead of a download, or None; for the data set `folder`, the
            folder of images. It has the SHA-256 of `settings`, or is a folder of the official batches.

    Raises:
        DataError: if the data set cannot be downloaded, its bytes are not the expected ones, or an image is damaged.
        StorageError: if a file cannot be read or written.
    """
    if settings.dataset == "digits":
        save_json({"dataset": "digits"}, folder / DESCRIPTION)
        return
    if settings.dataset == "folder":
        _store_images(settings, folder, local)
        return
    archive = folder / ARCHIVES[settings.dataset]
    if local is None:
        # The download is kept in the workspace, so that a second run of the stage needs no network.
        kept = workspace() / ".work" / "downloads" / settings.sha256
        if not _is_whole(kept, settings):
            with _alone(kept):
                if not _is_whole(kept, settings):
                    download.fetch(settings.mirrors, settings, kept.with_suffix(".part")).replace(kept)
        download.copy(kept, archive)
    elif local.is_dir():
        _take_folder(local, archive, settings)
    else:
        _take_archive(local, archive, settings)
    md5, sha256 = file_hashes(archive)
    about = {"archive": archive.name, "size": archive.stat().st_size, "md5": md5, "sha256": sha256}
    save_json({"dataset": settings.dataset, **about}, folder / DESCRIPTION)


def _is_whole(kept: Path, settings: Download) -> bool:
    try:
        download.check(kept, settings.size, settings.md5, settings.sha256)
    except (DataError, StorageError):
        return False
    return True


def _alone(kept: Path) -> AbstractContextManager[object]:
    """Return a context in which no other process fetches the same file; experiments of DVC's queue share the folder."""
    lock = FileLock(kept.with_suffix(".lock"))
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            warn(f"{lock.lock_file}: another process downloads the same file; waiting for it")
            return lock.acquire()
    except OSError as error:
        raise not_written(error.filename or kept, error) from error


def read_source(folder: Path) -> "tuple[Split, Split]":
    """Return the training and the test images that `fetch_source` stored.

    Raises:
        StorageError: if source.json cannot be read.
        DataError: if the folder does not hold a data set, or it is damaged.
    """
    about = load_json(folder / DESCRIPTION)
    match about:
        case {"dataset": "digits"}:
            # Each data set imports what only it needs, which takes a second or two.
            from leanresnet.data import digits

            return digits.read_digits()
        case {"dataset": str(dataset), "archive": name} if name == ARCHIVES.get(dataset):
            from leanresnet.data import cifar

            return cifar.read_archive(folder / name, dataset)
        case {"dataset": "folder"}:
            from leanresnet.data import folder as images
            from leanresnet.data.splits import load_split

            return images.hold_out_test(load_split(folder / IMAGES))
    raise DataError(f"{folder / DESCRIPTION}: not a source, expected: a file that `leanresnet download` wrote")


def known_size(settings: Download, source: Path, local: Path | None) -> tuple[int, int] | None:
    """Return the numbers of classes and of training images of a data set, before its stages have run.

    Args:
        settings: the section of params.yaml.
        source: the folder that `fetch_source` wrote, or will write.
        local: the images of the data set `folder`, or None.

    Returns:
        (classes, training images), or None for images that are not at hand.

    Raises:
        DataError: if the images in `local` are not those that `settings` name.
    """
    if settings.dataset != "folder":
        return SIZES[settings.dataset]
    if local is not None:
        from leanresnet.data import folder as images

        files = images.list_files(local)
        _check_digest(local, images.digest(files), settings.sha256)
        return len({name for name, _ in files}), images.training_images(len(files))
    about = load_json(source / DESCRIPTION) if (source / DESCRIPTION).exists() else None
    match about:
        case {"sha256": settings.sha256, "classes": int(classes), "training_images": int(count)}:
            return classes, count
    return None


def _store_images(settings: Download, folder: Path, local: Path | None) -> None:
    from leanresnet.data import folder as images
    from leanresnet.data.splits import save_split

    if local is None:
        expected = f"the path of your images through --archive or {download.VARIABLES['folder']}"
        raise DataError(f"download.dataset = folder without a folder, expected: {expected}")
    files = images.list_files(local)
    found = images.digest(files)
    _check_digest(local, found, settings.sha256)
    whole = images.read_images(files)
    save_split(whole, folder / IMAGES)
    counts = {"classes": len(whole.classes), "training_images": images.training_images(len(whole))}
    save_json({"dataset": "folder", "sha256": found, **counts}, folder / DESCRIPTION)


def _check_digest(local: Path, found: str, expected: str) -> None:
    if found != expected:
        remedy = f"if these are the images that you mean, set it to {found}"
        raise DataError(f"{local}: SHA-256 {found}, expected: {expected} of download.sha256; {remedy}")


def _take_archive(local: Path, archive: Path, settings: Download) -> None:
    if not local.is_file():
        from leanresnet.data.cifar import LAYOUTS

        title = LAYOUTS[settings.dataset].title
        raise DataError(f"{local}: no such file or directory, expected: {title}'s archive or its unpacked batches")
    _check_digest(local, file_hashes(local)[1], settings.sha256)
    download.copy(local, archive)


def _take_folder(local: Path, archive: Path, settings: Download) -> None:
    from leanresnet.data import cifar

    layout = cifar.LAYOUTS[settings.dataset]
    inner = local / layout.folder
    folder = inner if inner.is_dir() else local
    packed = cifar.pack_folder(folder, layout)
    if settings.sha256 == layout.sha256:
        # The bytes of the official archive cannot be made of its members.
        for name, md5 in layout.md5.items():
            if file_hashes(folder / name)[0] != md5:
                remedy = f"for another copy, set download.sha256 to {hashlib.sha256(packed).hexdigest()}"
                raise DataError(f"{folder / name}: not the official file, expected: md5 {md5}; {remedy}")
    else:
        _check_digest(local, hashlib.sha256(packed).hexdigest(), settings.sha256)
    save_bytes(packed, archive)
