"""Downloads over a real socket: mirrors in turn, resumed, verified; and the data set from a local copy."""

import datetime
import errno
import hashlib
import http.client
import http.server
import re
import shutil
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import archives
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from filelock import FileLock
from imports import ROOT
from torchvision.datasets import CIFAR100
from waiting import wait_for

from leanresnet.config.schema import Download
from leanresnet.data import cifar
from leanresnet.data.cifar import pack_folder
from leanresnet.data.download import copy, fetch
from leanresnet.data.sources import fetch_source, read_source
from leanresnet.errors import DataError, StorageError
from leanresnet.files import file_hashes, load_json, save_json, workspace
from leanresnet.scaffold.presets import load_preset

PAYLOAD = hashlib.shake_256(b"archive").digest(200_000)


def expecting(payload: bytes, *mirrors: str) -> Download:
    official = Download(
        dataset="cifar10",
        size=len(payload),
        md5=hashlib.md5(payload).hexdigest(),  # noqa: S324
        sha256=hashlib.sha256(payload).hexdigest(),
        mirrors=("https://127.0.0.1/never-asked",),
    )
    return official.model_copy(update={"mirrors": mirrors})  # a loopback address, which params would refuse


EXPECTED = expecting(PAYLOAD)


def stated(sha256: str) -> Download:
    return EXPECTED.model_copy(update={"sha256": sha256})


@dataclass
class Mirrors:
    """A server whose behaviour is the path that is asked for; `asked` lists (path, Range) of every request."""

    payload: bytes = PAYLOAD
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""
    location: str = ""

    def url(self, behaviour: str) -> str:
        return f"{self.address}/{behaviour}"

    def answer(self, behaviour: str, start: int) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) to a request for the bytes from `start`."""
        whole, rest = self.payload, self.payload[start:]
        part = {"Content-Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}"} if start else {}
        status, sized = (206 if start else 200), {"Content-Length": str(len(rest)), **part}
        answers: dict[str, tuple[int, dict[str, str], bytes]] = {
            "whole": (status, sized, rest),
            "unsized": (status, part, rest),
            "interrupted": (status, sized, rest[: len(rest) // 3]),
            "no-range": (200, {"Content-Length": str(len(whole))}, whole),
            "wrong-range": (206, {"Content-Length": str(len(whole)), "Content-Range": "bytes 0-"}, whole),
            "corrupted": (status, sized, bytes(len(rest))),
            "longer": (200, {"Content-Length": str(len(whole) + 1)}, whole + b"!"),
            "shorter": (200, {"Content-Length": str(len(whole) - 1)}, whole[:-1]),
            "endless": (200, {}, whole + b"!" * 100_000),
            "chunks-cut": (200, {"Transfer-Encoding": "chunked"}, b"%x\r\n" % len(whole) + whole[:1000]),
            "page": (200, {}, b"<html>Please log in</html>"),
            "busy": (503, {"Content-Length": "0"}, b""),
            "moved": (302, {"Location": self.url("whole")}, b""),
            "moved-in-a-circle": (302, {"Location": self.url("moved-in-a-circle")}, b""),
            "moved-elsewhere": (302, {"Location": self.location}, b""),
            "moved-to-a-file": (302, {"Location": "file:///etc/hostname"}, b""),
        }
        return answers.get(behaviour, (404, {"Content-Length": "0"}, b""))


@contextmanager
def serving(served: Mirrors, tls: ssl.SSLContext | None = None) -> Iterator[Mirrors]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour, requested = self.path.strip("/"), self.headers.get("Range")
            served.asked.append((behaviour, requested))
            start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1]) if requested else 0  # type: ignore[index]
            status, headers, body = served.answer(behaviour, start)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True  # the client has read as much as it wanted

        def log_message(self, format: str, *values: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        served.address = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield served
        server.shutdown()
        thread.join()


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirrors]:
    monkeypatch.setenv("no_proxy", "*")
    with serving(Mirrors()) as served:
        yield served


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirrors]:
    """With TLS, and a certificate that this process trusts."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), True)
    file, pem = tmp_path / "server.pem", serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + builder.sign(key, hashes.SHA256()).public_bytes(pem))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    with serving(Mirrors(), tls) as served:
        yield served


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "archive.part"


def begin(part: Path, content: bytes) -> None:
    """What an earlier run left."""
    part.parent.mkdir(parents=True)
    part.write_bytes(content)


THIRD, SIZE = len(PAYLOAD) // 3, len(PAYLOAD)
# (what is in the file before, the mirrors in their order, each request that they get and the byte that it begins with)
SERVED: dict[str, tuple[bytes, list[str], list[tuple[str, int]]]] = {
    "a whole file": (b"", ["whole"], [("whole", 0)]),
    "no length": (b"", ["unsized"], [("unsized", 0)]),
    "more than the file, without a length": (b"", ["endless"], [("endless", 0)]),
    "moved": (b"", ["moved"], [("moved", 0), ("whole", 0)]),
    "cut, and resumed": (b"", ["interrupted", "whole"], [("interrupted", 0), ("whole", THIRD)]),
    "cut, and resumed without a length": (b"", ["interrupted", "unsized"], [("interrupted", 0), ("unsized", THIRD)]),
    "resumed, cut again, resumed": (
        PAYLOAD[:1000],
        ["interrupted", "whole"],
        [("interrupted", 1000), ("whole", 1000 + (SIZE - 1000) // 3)],
    ),
    "the range ignored": (PAYLOAD[:1000], ["no-range"], [("no-range", 1000)]),
    "another range than asked for": (PAYLOAD[:1000], ["wrong-range"], [("wrong-range", 1000)]),
    "a damaged beginning": (b"wrong" * 100, ["whole"], [("whole", 500), ("whole", 0)]),
    "a damaged whole": (bytes(SIZE), ["whole"], [("whole", 0)]),
    "a file that is too long": (bytes(SIZE + 1), ["whole"], [("whole", 0)]),
}
# (the mirror, its reason, the bytes that stay to be resumed)
REFUSED: dict[str, tuple[str, str, int]] = {
    "other bytes": ("corrupted", f"expected: {SIZE} bytes, SHA-256 {EXPECTED.sha256}", 0),
    "a length that is too large": ("longer", f"offers {SIZE + 1} bytes instead of {SIZE}", 0),
    "a length that is too small": ("shorter", f"offers {SIZE - 1} bytes instead of {SIZE}", 0),
    "a length that is not kept": ("interrupted", f"ended after {THIRD} of {SIZE} bytes", THIRD),
    "a chunk that is cut": ("chunks-cut", "IncompleteRead", 0),
    "a page for a file": ("page", f"ended after 26 of {SIZE} bytes", 26),
    "moved in a circle": ("moved-in-a-circle", "infinite loop", 0),
    "moved to a file": ("moved-to-a-file", "not allowed", 0),
    "busy": ("busy", "Service Unavailable", 0),
    "nothing there": ("absent", "Not Found", 0),
}


@pytest.mark.parametrize("case", SERVED)
def test_a_download_is_the_mirrors_bytes_whatever_came_between(mirrors: Mirrors, part: Path, case: str) -> None:
    left, behaviours, asked = SERVED[case]
    begin(part, left)
    assert fetch([mirrors.url(behaviour) for behaviour in behaviours], EXPECTED, part) == part
    assert part.read_bytes() == PAYLOAD
    assert mirrors.asked == [(behaviour, f"bytes={start}-" if start else None) for behaviour, start in asked]


@pytest.mark.parametrize("case", REFUSED)
def test_a_mirror_that_does_not_serve_is_refused_with_its_reason(mirrors: Mirrors, part: Path, case: str) -> None:
    behaviour, reason, kept = REFUSED[case]
    with pytest.raises(DataError) as caught:
        fetch([mirrors.url(behaviour)], EXPECTED, part)
    assert reason in str(caught.value)
    assert (part.read_bytes() if part.exists() else b"") == {26: b"<html>Please log in</html>"}.get(
        kept, PAYLOAD[:kept]
    )


def test_a_finished_download_asks_nobody(mirrors: Mirrors, part: Path) -> None:
    begin(part, PAYLOAD)
    fetch([mirrors.url("whole")], EXPECTED, part)
    assert mirrors.asked == []


def test_mirrors_are_asked_in_their_order_until_one_serves(mirrors: Mirrors, part: Path) -> None:
    behaviours = ["absent", "longer", "corrupted", "whole", "no-range"]
    fetch([mirrors.url(behaviour) for behaviour in behaviours], EXPECTED, part)
    assert mirrors.asked == [(behaviour, None) for behaviour in behaviours[:4]]
    assert part.read_bytes() == PAYLOAD


def test_a_wrong_checksum_leaves_nothing_behind(mirrors: Mirrors, part: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch([mirrors.url("corrupted")], EXPECTED, part)
    for said in (EXPECTED.sha256, EXPECTED.md5, hashlib.sha256(bytes(len(PAYLOAD))).hexdigest()):
        assert said in str(caught.value)
    assert list(part.parent.iterdir()) == []


def test_no_mirror_at_all_names_each_with_its_reason(mirrors: Mirrors, part: Path, closed: str) -> None:
    with pytest.raises(DataError) as caught:
        fetch([f"{closed}/a", mirrors.url("absent"), f"{closed}/b"], EXPECTED, part)
    message = str(caught.value)
    for said in (f"{closed}/a: ", "Connection refused", f"{mirrors.url('absent')}: Not Found", f"{closed}/b: "):
        assert said in message
    assert "expected: a network, or a local copy through --archive" in message
    assert len(message.splitlines()) == 1
    assert not part.exists()


@pytest.fixture
def closed() -> str:
    """The address of a port that nobody listens on."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_a_redirect_away_from_https_is_refused(mirrors: Mirrors, secure: Mirrors, part: Path, scheme: str) -> None:
    secure.location = mirrors.url("whole").replace("http", scheme)
    with pytest.raises(DataError, match=f"moved-elsewhere: redirected to {scheme}:, which is not https"):
        fetch([secure.url("moved-elsewhere")], EXPECTED, part)
    assert (mirrors.asked, part.exists()) == ([], False)


def test_a_redirect_within_https_is_followed(mirrors: Mirrors, secure: Mirrors, part: Path) -> None:
    begin(part, PAYLOAD[:1000])
    fetch([secure.url("moved")], EXPECTED, part)
    assert secure.asked == [("moved", "bytes=1000-"), ("whole", "bytes=1000-")]
    assert part.read_bytes() == PAYLOAD


def test_a_connection_that_breaks_is_not_taken_for_the_disk(
    mirrors: Mirrors, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> bytes:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(http.client.HTTPResponse, "read", unreachable)
    with pytest.raises(DataError, match=r"whole: .*No route to host"):
        fetch([mirrors.url("whole")], EXPECTED, part)


def test_a_place_that_cannot_be_written_is_a_storage_error(mirrors: Mirrors, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        fetch([mirrors.url("whole")], EXPECTED, tmp_path / "file" / "sub" / "archive.part")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return archives.write_archive(tmp_path / "copies" / "mine.tar.gz")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data" / "source"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_archive_comes_from_the_network_once(mirrors: Mirrors, archive: Path, out: Path) -> None:
    mirrors.payload = archive.read_bytes()
    settings = expecting(mirrors.payload, mirrors.url("absent"), mirrors.url("whole"))
    fetch_source(settings, out, None)
    assert [behaviour for behaviour, _ in mirrors.asked] == ["absent", "whole"]
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    for path in out.iterdir():
        path.unlink()
    fetch_source(settings, out, None)
    assert len(mirrors.asked) == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert sorted(first) == ["cifar-10-python.tar", "source.json"]
    (kept,) = (path for path in (workspace() / ".work" / "downloads").iterdir() if not path.suffix)
    kept.write_bytes(b"damaged")
    fetch_source(settings, out, None)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert len(read_source(out)[0]) == 200


def test_processes_that_share_a_workspace_download_once(mirrors: Mirrors, archive: Path, out: Path) -> None:
    """Experiments of DVC's queue run at the same time, and the copies in which they run share the workspace."""
    mirrors.payload = archive.read_bytes()
    settings = expecting(mirrors.payload, mirrors.url("whole"))
    at_once = threading.Barrier(8)

    def fetch_into(name: int) -> Path:
        at_once.wait()
        fetch_source(settings, out / str(name), None)
        return out / str(name) / "cifar-10-python.tar"

    with ThreadPoolExecutor(8) as pool:
        fetched = list(pool.map(fetch_into, range(8)))
    assert len({path.read_bytes() for path in fetched}) == 1
    assert mirrors.asked == [("whole", None)]


def test_a_process_that_waits_for_a_download_says_so(
    mirrors: Mirrors, archive: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirrors.payload = archive.read_bytes()
    settings = expecting(mirrors.payload, mirrors.url("whole"))
    lock = workspace() / ".work/downloads" / f"{settings.sha256}.lock"
    lock.parent.mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with FileLock(lock):
            fetched = pool.submit(fetch_source, settings, out, None)
            said = wait_for(lambda: capsys.readouterr().err)
        fetched.result()
    assert said == f"warning: {lock}: another process downloads the same file; waiting for it\n"
    assert (out / "cifar-10-python.tar").read_bytes() == archive.read_bytes()


def test_the_description_says_what_was_fetched(archive: Path, out: Path) -> None:
    fetch_source(stated(sha256(archive)), out, archive)
    assert load_json(out / "source.json") == {
        "dataset": "cifar10",
        "archive": "cifar-10-python.tar",
        "size": archive.stat().st_size,
        "md5": hashlib.md5(archive.read_bytes()).hexdigest(),  # noqa: S324
        "sha256": sha256(archive),
    }


def test_a_local_archive_is_taken_when_it_is_the_official_one(archive: Path, out: Path) -> None:
    fetch_source(expecting(archive.read_bytes()), out, archive)
    assert (out / "cifar-10-python.tar").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("nested", [False, True])
def test_a_local_folder_is_taken_with_its_checksum(tmp_path: Path, out: Path, nested: bool) -> None:
    local = tmp_path / "batches"
    folder = archives.write_folder(local / archives.FOLDER if nested else local)
    fetch_source(stated(hashlib.sha256(pack_folder(folder)).hexdigest()), out, local)
    assert (out / "cifar-10-python.tar").read_bytes() == pack_folder(folder)
    assert read_source(out)[0].classes == archives.CLASSES


def test_a_folder_of_the_official_batches_needs_no_other_checksum(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = archives.write_folder(tmp_path / "batches")
    official = {name: file_hashes(local / name)[0] for name in cifar.LAYOUTS["cifar10"].md5}
    layout = cifar.LAYOUTS["cifar10"]._replace(md5=official, sha256=EXPECTED.sha256)
    monkeypatch.setitem(cifar.LAYOUTS, "cifar10", layout)
    fetch_source(EXPECTED, out, local)
    assert (out / "cifar-10-python.tar").read_bytes() == pack_folder(local)
    # With the checksum of another copy, the official files are not those that are meant.
    with pytest.raises(DataError, match=r"batches: SHA-256 \w+, expected: 1+ of download\.sha256"):
        fetch_source(stated("1" * 64), out, local)
    shutil.copy(local / "data_batch_1", local / "data_batch_2")
    other = hashlib.sha256(pack_folder(local)).hexdigest()
    with pytest.raises(DataError, match=f"data_batch_2: not the official file, expected: md5 .*, set .* to {other}$"):
        fetch_source(EXPECTED, out, local)


@pytest.mark.parametrize(("dataset", "preset"), [("cifar10", "default"), ("cifar100", "cifar100")])
def test_the_presets_expect_the_official_archive(dataset: str, preset: str) -> None:
    assert load_preset(preset, ROOT / "presets").params.download.sha256 == cifar.LAYOUTS[dataset].sha256


@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_a_refused_copy_leaves_what_was_there(tmp_path: Path, out: Path, kind: str) -> None:
    local = tmp_path / "local"
    write = archives.write_archive if kind == "archive" else archives.write_folder
    write(local)
    archives.write_archive(out / "cifar-10-python.tar")
    before = (out / "cifar-10-python.tar").read_bytes()
    found = sha256(local) if kind == "archive" else hashlib.sha256(pack_folder(local)).hexdigest()
    message = f"local: SHA-256 {found}, expected: {EXPECTED.sha256} of download.sha256; if .*, set it to {found}$"
    with pytest.raises(DataError, match=message):
        fetch_source(EXPECTED, out, local)
    assert [path.name for path in out.iterdir()] == ["cifar-10-python.tar"]
    assert (out / "cifar-10-python.tar").read_bytes() == before


def test_a_copy_that_breaks_off_names_the_file_that_was_read(tmp_path: Path) -> None:
    """The first bytes of this file, which are no memory of the process, fail to be read and not to be opened."""
    with pytest.raises(StorageError, match=r"^/proc/self/mem: cannot be read \(Input/output error\)$"):
        copy(Path("/proc/self/mem"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_copy_that_is_not_there_is_refused(tmp_path: Path, out: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or directory, expected: "):
        fetch_source(EXPECTED, out, tmp_path / "nowhere")


def test_the_digits_need_no_archive(out: Path) -> None:
    fetch_source(EXPECTED.model_copy(update={"dataset": "digits"}), out, None)
    assert [path.name for path in out.iterdir()] == ["source.json"]
    assert read_source(out)[0].dataset == "digits"


def test_cifar100_is_stored_and_read_like_cifar10(tmp_path: Path, out: Path) -> None:
    local = archives.write_cifar100(tmp_path / "cifar-100-python.tar.gz")
    settings = expecting(local.read_bytes()).model_copy(update={"dataset": "cifar100"})
    fetch_source(settings, out, local)
    assert load_json(out / "source.json")["dataset"] == "cifar100"
    assert read_source(out)[1].labels.tolist() == archives.fine("test")


def test_the_preset_has_the_published_archive() -> None:
    settings = load_preset("cifar100", ROOT / "presets").params.download
    assert settings.mirrors[-1] == CIFAR100.url
    assert settings.md5 == CIFAR100.tgz_md5


def test_a_download_is_not_written_through_a_link(mirrors: Mirrors, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "part").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError, match=r"part: cannot be written \(Too many levels of symbolic links\)"):
        fetch([mirrors.url("whole")], EXPECTED, tmp_path / "part")
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_source_names_no_archive_elsewhere(tmp_path: Path) -> None:
    archives.write_archive(tmp_path / "other.tar")
    save_json({"dataset": "cifar10", "archive": "../other.tar"}, tmp_path / "source/source.json")
    with pytest.raises(DataError, match=r"source\.json: not a source"):
        read_source(tmp_path / "source")
