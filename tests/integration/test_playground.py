"""The page, as a visitor has it: in Streamlit's own client, over HTTP and in a browser."""

import io
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from browser import needs_browser, open_tab
from conftest import outside_environment
from helpers import CLASSES, random_images, synthetic_split, tiny_model, tiny_net
from imports import ROOT
from PIL import Image
from streamlit.testing.v1 import AppTest
from test_security import others, reachable
from waiting import PATIENCE, free_port, wait_for
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from leanresnet.data.splits import save_split
from leanresnet.models.checkpoint import load_model, save_model
from leanresnet.serving.inference import MODELS, classify
from leanresnet.serving.playground import app
from leanresnet.serving.playground.server import UPLOAD_MB


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("playground") / "models"
    for seed, name in enumerate(MODELS):
        save_model(tiny_net(seed).state_dict(), tiny_model(), CLASSES, {"name": name}, folder / name)
    return folder


@pytest.fixture(scope="module")
def photo(models: Path) -> Path:
    """A JPEG that lies on its side, as a phone writes it."""
    path = models.parent / "photo.jpg"
    image = Image.fromarray(random_images(1)[0].permute(1, 2, 0).numpy()).resize((300, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    return path


def predicted(models: Path, photo: Path) -> dict[str, dict[str, float]]:
    """What `leanresnet predict` says, the likeliest first."""
    return {name: next(classify(load_model(models / name), [photo]))[1] for name in MODELS}


def page(models: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr(sys, "argv", ["app.py", str(models), str(models.parent / "test.safetensors"), "cpu"])
    return AppTest.from_file(app.__file__, default_timeout=PATIENCE).run()


def test_it_says_what_predict_says_and_that_models_differ(
    models: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited = page(models, monkeypatch)
    assert not visited.dataframe
    visited.file_uploader[0].upload(photo.name, photo.read_bytes(), "image/jpeg").run()
    said, expected = visited.dataframe[0].value.set_index("class"), predicted(models, photo)
    for name, shares in expected.items():
        assert said[name].to_dict() == pytest.approx({of: 100 * share for of, share in shares.items()}, abs=1e-3)
    firsts = {name: next(iter(shares)) for name, shares in expected.items()}
    assert len(set(firsts.values())) > 1
    assert all(f"**{chosen}**: " in visited.warning[0].value for chosen in firsts.values())
    assert [text.value.split("  \n")[1] for text in visited.markdown] == [
        f"**{chosen}** {expected[name][chosen]:.2%}" for name, chosen in firsts.items()
    ]


def test_models_that_agree_and_a_model_alone(
    models: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("baseline", "student"):
        shutil.copytree(models / "teacher", tmp_path / name)
    chosen = next(iter(predicted(models, photo)["teacher"]))
    visited = page(tmp_path, monkeypatch)
    visited.file_uploader[0].upload(photo.name, photo.read_bytes(), "image/jpeg").run()
    assert visited.success[0].value == f"All 2 models agree: **{chosen}**."
    shutil.rmtree(tmp_path / "baseline")
    assert visited.run().info[0].value == f"The model predicts **{chosen}**."


def test_samples_of_the_test_split_and_an_image_that_is_unlike_them(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in MODELS:
        shutil.copytree(models / "teacher", tmp_path / "models" / name)
    test = synthetic_split(60, noise=0.1)
    save_split(test, tmp_path / "test.safetensors")
    visited = page(tmp_path / "models", monkeypatch)
    assert not visited.dataframe
    samples = visited.button_group[0]
    assert list(samples.options) == list(CLASSES[:6])
    samples.select(3).run()
    assert len(visited.dataframe) == 1
    assert not any("unlike" in warning.value for warning in visited.warning)
    assert "All 3 models agree" in visited.success[0].value
    content = io.BytesIO()
    Image.new("RGB", (40, 40), (255, 0, 255)).save(content, "png")
    visited.file_uploader[0].upload("flat.png", content.getvalue(), "image/png").run()
    assert "unlike the images of the data set" in visited.warning[0].value
    # No green box, which would look like a good prediction.
    assert not visited.success
    assert "All 3 models agree" in visited.info[0].value
    assert not visited.exception


def test_a_model_that_was_trained_again_is_read_again(
    models: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models / "baseline", tmp_path / "student")
    visited = page(tmp_path, monkeypatch)
    visited.file_uploader[0].upload(photo.name, photo.read_bytes(), "image/jpeg").run()
    before = visited.dataframe[0].value
    save_model(tiny_net(9).state_dict(), tiny_model(), CLASSES, {"name": "student"}, tmp_path / "student")
    assert not visited.run().dataframe[0].value.equals(before)


def test_what_is_no_image_and_no_model_is_said_on_the_page(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited = page(models, monkeypatch)
    visited.file_uploader[0].upload("![a](b).png", b"no image", "image/png").run()
    # Escaped: in Markdown it would be a picture of another server.
    assert visited.error[0].value == r"\!\[a\](b).png\: not a whole image, expected\: JPEG or PNG"
    assert not visited.exception
    shutil.copytree(models / "student", tmp_path / "student")
    (tmp_path / "student" / "model.safetensors").write_bytes(b"")
    assert "SHA-256" in page(tmp_path, monkeypatch).error[0].value


@dataclass
class Served:
    port: int
    outside: socket.socket

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Served]:
    """The command; what its process asks of another machine would reach `outside`."""
    port = free_port()
    outside = socket.create_server(("127.0.0.1", 0))
    outside.setblocking(False)
    proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
    (models.parent / "params.yaml").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "playground", "--port", str(port), "--device", "cpu"],
        cwd=models.parent,
        env=outside_environment(PYTHONPATH=str(ROOT), http_proxy=proxy, https_proxy=proxy),
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None
        yield Served(port, outside)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        outside.close()


def test_no_foreign_page_gets_in_and_nothing_goes_out(served: Served) -> None:
    assert reachable("127.0.0.1", served.port)
    assert [address for address in others() if reachable(address, served.port)] == []
    path, here = f":{served.port}/_stcore/stream", {"address": ("127.0.0.1", served.port), "proxy": None}
    with connect(f"ws://127.0.0.1{path}", origin=served.address, **here):
        pass
    with (
        pytest.raises(InvalidStatus, match="403"),
        connect(f"ws://127.0.0.1{path}", origin="http://evil.example", **here),
    ):
        pass
    # A name of theirs that leads here.
    with pytest.raises(InvalidStatus, match="403"), connect(f"ws://evil.example{path}", **here):
        pass
    with pytest.raises(BlockingIOError):
        served.outside.accept()


@needs_browser
def test_in_a_browser(served: Served, models: Path, photo: Path, tmp_path: Path) -> None:
    firsts = [next(iter(shares.items())) for shares in predicted(models, photo).values()]
    zone = "[data-testid=stFileUploaderDropzone]"
    big, fake = tmp_path / "big.png", tmp_path / "fake.png"
    big.write_bytes(bytes((UPLOAD_MB + 1) * 2**20))
    fake.write_bytes(b"no image")
    with open_tab(tmp_path / "profile") as tab:
        tab.call("Page.navigate", url=served.address)
        for file, answer in (
            (big, f"must be {UPLOAD_MB}.0MB or smaller"),
            (fake, "fake.png: not a whole image, expected: JPEG or PNG"),
            (photo, "The models differ."),
        ):
            wait_for(lambda: tab.value(f"!!document.querySelector({zone!r})"))
            tab.drop(file, zone)
            wait_for(lambda answer=answer: answer in tab.text())
        wait_for(lambda: tab.value("!!document.querySelector('[data-testid=stDataFrame] canvas')"))
        shown = tab.text()
        assert all(f"{chosen} {share:.2%}" in shown for chosen, share in firsts)
        assert len(tab.requests) > 10
        ours = (f"{served.address}/", f"ws://127.0.0.1:{served.port}/", "data:", f"blob:{served.address}/")
        assert [asked for asked in tab.requests if not asked.startswith(ours)] == []
