"""Headless Chromium over its DevTools protocol, as much as the tests need."""

import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE, wait_for
from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "there is no Chromium (Debian: apt-get install chromium)"
# CI installs one, so that a test in a browser is skipped on a developer's machine alone.
needs_browser = pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason=MISSING)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Tab:
    """A page; `requests` are the addresses that it has asked for."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.calls = connection, 0
        self.requests: list[str] = []
        for domain in ("Network", "Page", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.calls += 1
        self.connection.send(json.dumps({"id": self.calls, "method": method, "params": params}))
        while True:
            message = json.loads(self.connection.recv(timeout=PATIENCE))
            if message.get("id") == self.calls:
                assert "error" not in message, message
                return message["result"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                self.requests.append(message["params"]["url"])

    def value(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def text(self) -> str:
        return self.value("document.body ? document.body.innerText : ''")

    def drop(self, file: Path, selector: str) -> None:
        """`file`, from the desktop onto the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        middle = f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})"
        # The element may move while the page is still being drawn.
        places = [self.value(middle)]
        while len(places) < 2 or places[-1] != places[-2]:
            time.sleep(0.2)
            places.append(self.value(middle))
        x, y = places[-1]
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)


@contextmanager
def open_tab(profile: Path) -> Iterator[Tab]:
    """In a browser of its own with a new profile."""
    assert CHROMIUM, MISSING
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ready = profile / "DevToolsActivePort"
        wait_for(lambda: (ready.exists() and ready.read_text().split()) or process.poll() is not None)
        port = ready.read_text().split()[0]
        devtools = http.client.HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE)
        devtools.request("PUT", "/json/new?about:blank")
        address = json.load(devtools.getresponse())["webSocketDebuggerUrl"]
        devtools.close()
        with connect(address, proxy=None, max_size=None) as connection:
            yield Tab(connection)
    finally:
        process.terminate()
        process.wait()
