"""The reading and writing of files. Each is written under another name, flushed and renamed, so it is never partial."""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from leanresnet.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

PARAMS = "params.yaml"
# The umask can only be read by setting it, which affects all threads, so this is done once, at import.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_write(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` only if the block ends without an exception.

    Args:
        size: its size in bytes for the error message, if it is known.

    Raises:
        StorageError: if it cannot be written; the message has the path, the system's reason and the size.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            partial = Path(file.name)
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_UMASK)
        partial.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        # The name of the partial file is of no use to the reader.
        place = Path(error.filename or path)
        is_partial = place.absolute().parent == path.absolute().parent
        raise not_written(path if is_partial else place, error, size) from error
    finally:
        if partial is not None:
            # On a disk that has become read-only, the partial file cannot be removed.
            with suppress(OSError):
                partial.unlink()


def no_link(path: str, flags: int) -> int:
    """An opener for `open` that refuses to follow a symbolic link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def not_written(path: Path | str, error: OSError, size: int | None = None) -> StorageError:
    """Return the error for a file that cannot be written; `size` is the number of bytes that it needs."""
    takes = "" if size is None else f"; it takes {size:,} bytes"
    return StorageError(f"{path}: cannot be written ({error.strerror}){takes}")


def not_read(path: Path, error: OSError) -> StorageError:
    """Return the error for a file or a folder that cannot be read."""
    return StorageError(f"{path}: cannot be read ({error.strerror})")


def _flush_folder(folder: Path) -> None:
    """Flush a folder, without which a power cut may undo the renaming of a file in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def workspace() -> Path:
    """Return the folder of databases, locks and downloads.

    In a stage it is DVC's root, even if DVC runs the stage in a temporary copy. Outside of DVC it is the `project`.

    Raises:
        ConfigError: if there is none.
    """
    root = os.environ.get("DVC_ROOT")
    return Path(root).resolve() if root else project()


def project() -> Path:
    """Return the nearest folder with a params.yaml, from the current one upwards.

    Raises:
        ConfigError: if there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / PARAMS).is_file():
            return folder
    made = "`leanresnet init` makes one"
    raise ConfigError(f"{here}: no workspace, expected: a folder with {PARAMS}, or one below such a folder; {made}")


def save_bytes(content: bytes, path: Path) -> None:
    with atomic_write(path, len(content)) as file:
        file.write(content)


def save_text(text: str, path: Path) -> None:
    save_bytes(text.encode(), path)


def save_json(content: Any, path: Path) -> None:
    """Write a JSON file; raise DataError if `content` has a number that is NaN or infinite."""
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except ValueError as error:
        raise DataError(f"{path}: a number is NaN or infinite, expected: finite numbers") from error
    save_text(text + "\n", path)


def load_json(path: Path) -> Any:
    """Read a JSON file; raise StorageError if it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise not_read(path, error) from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: not valid JSON ({error})") from error


def _no_number(name: str) -> None:
    """Refuse NaN, Infinity and -Infinity, which Python's parser accepts but JSON does not have."""
    raise ValueError(f"{name} is not a number")


def save_csv(header: Sequence[str], rows: Sequence[Sequence[object]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    save_text(text.getvalue(), path)


def save_safetensors(tensors: "Mapping[str, Tensor]", path: Path, about: object = None) -> None:
    """Write a safetensors file, whose bytes depend only on its content.

    safetensors writes several metadata keys in a random order, so `about` is stored as JSON under one key.
    """
    from safetensors.torch import save

    metadata = None if about is None else {"about": json.dumps(about, allow_nan=False)}
    save_bytes(save(dict(tensors), metadata), path)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG without date and version, so that the same figure has the same bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100, metadata={"Software": None})
    save_bytes(drawn.getvalue(), path)


def file_hashes(path: Path) -> tuple[str, str]:
    """Return (md5, SHA-256) of a file. The md5 is the one that DVC writes to dvc.lock.

    Raises:
        StorageError: if the file cannot be read.
    """
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                md5.update(chunk)
                sha256.update(chunk)
    except OSError as error:
        raise not_read(path, error) from error
    return md5.hexdigest(), sha256.hexdigest()
