"""The download and the verification of a data set's archive.

Mirrors are tried in turn, and an incomplete download is resumed.
"""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from leanresnet.config.schema import Download
from leanresnet.errors import DataError
from leanresnet.files import atomic_write, file_hashes, no_link, not_read, not_written

# The environment variable that names a local copy of a data set.
VARIABLES = {"cifar10": "LEANRESNET_CIFAR10", "cifar100": "LEANRESNET_CIFAR100", "folder": "LEANRESNET_FOLDER"}
TIMEOUT_SECONDS = 30
CHUNK = 1 << 16


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"redirected to {newurl.split(':')[0]}:, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(urls: Sequence[str], expected: Download, part: Path) -> Path:
    """Download into `part` from the first of `urls` that serves the expected bytes; resume an incomplete `part`.

    Args:
        urls: the mirrors, in the order in which they are tried.
        expected: size and digests of the archive.

    Returns:
        `part`, verified.

    Raises:
        DataError: if no mirror serves the expected bytes; the message has the reason of each mirror.
        StorageError: if `part` cannot be written.
    """
    failures = []
    for url in urls:
        for attempt in ("first", "second"):
            resumed = part.exists() and part.stat().st_size > 0
            try:
                _fetch_one(url, part, expected.size)
                check(part, expected.size, expected.md5, expected.sha256)
                return part
            except DataError as error:
                part.unlink(missing_ok=True)
                failures.append(str(error))
                # The error may be in the bytes that another mirror left, so this mirror gets a second attempt.
                if not (resumed and attempt == "first"):
                    break
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                ValueError,
                TimeoutError,
                ConnectionError,
            ) as error:
                failures.append(f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}")
                break
            except OSError as error:
                raise not_written(part, error, expected.size) from error
    raise DataError(
        f"no mirror of download.mirrors served the archive ({'; '.join(failures)}), expected: a network,"
        f" or a local copy through --archive or {VARIABLES[expected.dataset]}"
    )


def check(path: Path, size: int, md5: str, sha256: str) -> None:
    """Check a file's size and digests.

    Raises:
        DataError: if one of them is not the expected one.
        StorageError: if the file cannot be read.
    """
    found_md5, found_sha256 = file_hashes(path)
    found_size = path.stat().st_size
    if (found_size, found_md5, found_sha256) != (size, md5, sha256):
        raise DataError(
            f"{path}: {found_size} bytes, SHA-256 {found_sha256}, expected: {size} bytes, SHA-256 {sha256}"
            f" ({'md5 agrees' if found_md5 == md5 else f'md5 {found_md5} is not {md5}'})"
        )


def copy(source: Path, target: Path) -> None:
    """Copy a file; raise StorageError if the source cannot be read or the target cannot be written."""

    def chunks() -> Iterator[bytes]:
        try:
            with source.open("rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk
        except OSError as error:
            raise not_read(source, error) from error

    size = source.stat().st_size if source.exists() else None
    with atomic_write(target, size) as out:
        out.writelines(chunks())


def _fetch_one(url: str, part: Path, size: int) -> None:
    start = part.stat().st_size if part.exists() else 0
    if start > size:
        part.unlink()
        start = 0
    if start == size:
        return
    request = urllib.request.Request(
        url, headers={"User-Agent": "leanresnet", **({"Range": f"bytes={start}-"} if start else {})}
    )
    opener = urllib.request.build_opener(_HttpsOnly)
    with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
        whole = response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if whole:
            start = 0
        length = response.headers.get("Content-Length")
        if length is not None and length.isdigit() and start + int(length) != size:
            raise urllib.error.URLError(f"offers {start + int(length)} bytes instead of {size}")
        part.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(part, "wb" if whole else "ab", opener=no_link) as file,
            tqdm(total=size, initial=start, unit="B", unit_scale=True, desc=url.split("/")[2], disable=None) as bar,
        ):
            while start < size and (chunk := _read(response, min(CHUNK, size - start))):
                file.write(chunk)
                start += len(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if start < size:
        raise ConnectionError(f"ended after {start} of {size} bytes")


def _read(response: http.client.HTTPResponse, count: int) -> bytes:
    """Read from the connection; raise its failures as ConnectionError, so that a plain OSError is one of the disk."""
    try:
        return response.read(count)
    except OSError as error:
        raise ConnectionError(str(error)) from error
