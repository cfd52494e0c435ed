"""Files that are either whole or absent: written beside their place, flushed, then renamed."""

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
# Asked for once, by setting it: for that moment, it is every thread's.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_write(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only when the block ends well.

    Args:
        size: bytes that it takes, where that is known before.

    Raises:
        StorageError: with the path, the system's reason and the bytes that it takes.
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
        raise not_written(error.filename or path, error, size) from error
    finally:
        if partial is not None:
            # On a disk that became read-only, it stays.
            with suppress(OSError):
                partial.unlink()


def no_link(path: str, flags: int) -> int:
    """An opener for `open` that refuses to write through a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def not_written(path: Path | str, error: OSError, size: int | None = None) -> StorageError:
    """The one line for it; `size` is the bytes that the file takes."""
    takes = "" if size is None else f"; it takes {size:,} bytes"
    return StorageError(f"{path}: cannot be written ({error.strerror}){takes}")


def _flush_folder(folder: Path) -> None:
    """Without it, a file's new name may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def workspace() -> Path:
    """Where databases, locks and downloads live: DVC's root, also from a temporary copy that DVC made of it.

    Outside of DVC it is the `project`.

    Raises:
        ConfigError: there is none.
    """
    root = os.environ.get("DVC_ROOT")
    return Path(root).resolve() if root else project()


def project() -> Path:
    """The nearest folder with a params.yaml, from the current one upwards.

    Raises:
        ConfigError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / PARAMS).is_file():
            return folder
    made = "`leanresnet init` makes one"
    raise ConfigError(f"{here}: no workspace, expected: a folder with {PARAMS}, or one below such a folder; {made}")


def save_bytes(content: bytes | memoryview, path: Path) -> None:
    with atomic_write(path, len(content)) as file:
        file.write(content)


def save_text(text: str, path: Path) -> None:
    save_bytes(text.encode(), path)


def save_json(content: Any, path: Path) -> None:
    """Raises DataError where `content` has a number that JSON has not."""
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except ValueError as error:
        raise DataError(f"{path}: a number is NaN or infinite, expected: finite numbers") from error
    save_text(text + "\n", path)


def load_json(path: Path) -> Any:
    """Raises StorageError when the file cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: not valid JSON ({error})") from error


def _no_number(name: str) -> None:
    """Python reads NaN, Infinity and -Infinity, which are not JSON."""
    raise ValueError(f"{name} is no number")


def save_csv(header: Sequence[str], rows: Sequence[Sequence[object]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    save_text(text.getvalue(), path)


def save_safetensors(tensors: "Mapping[str, Tensor]", path: Path, about: object = None) -> None:
    """The same bytes for the same content.

    safetensors writes several metadata keys in a random order, so `about` is JSON under one key.
    """
    from safetensors.torch import save

    metadata = None if about is None else {"about": json.dumps(about, allow_nan=False)}
    save_bytes(save(dict(tensors), metadata), path)


def save_figure(figure: "Figure", path: Path) -> None:
    """A PNG with no date or version in it, so that the same figure is the same bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100, metadata={"Software": None})
    save_bytes(drawn.getbuffer(), path)


def file_hashes(path: Path) -> tuple[str, str]:
    """(md5, SHA-256) of a file, in one pass. The md5 is the one that DVC writes to dvc.lock.

    Raises:
        StorageError: the file cannot be read.
    """
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                md5.update(chunk)
                sha256.update(chunk)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
    return md5.hexdigest(), sha256.hexdigest()
