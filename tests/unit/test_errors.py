"""The line that a user has without an extra, and the reason why another program did not answer."""

import re
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions

import pytest
import torch
from helpers import tiny_net
from imports import PACKAGES, ROOT

from leanresnet.errors import ConfigError, StorageError, cause
from leanresnet.serving import export
from leanresnet.tracking import connection
from pipeline.cli import cli

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def write_onnx() -> None:
    export._onnx(tiny_net(), torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("streamlit", "serve", lambda: cli(["playground"], standalone_mode=False)),
        ("onnx", "export", write_onnx),
        ("onnxscript", "export", write_onnx),
        ("onnxruntime", "export", write_onnx),
        ("psycopg2", "team", connection.connect),
        ("boto3", "team", connection.connect),
    ],
)
def test_a_missing_extra_is_one_line_that_says_how_to_install_it(
    module: str, extra: str, use: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = "http://127.0.0.1:9" if module == "boto3" else "postgresql+psycopg2://mlflow@127.0.0.1:9/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setattr(connection, "_find_experiment", lambda *_: "s3://mlflow/1")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as refused:
        use()
    assert str(refused.value) == f"{module}: not installed; `pip install 'leanresnet[{extra}]'` installs it"


def test_an_extra_installs_what_is_asked_of_it() -> None:
    calls = [
        call
        for file in (file for package in PACKAGES.values() for file in package.rglob("*.py"))
        for call in re.findall(r"require\((\".*)\)", file.read_text())
    ]
    assert len(calls) == 4
    installed = packages_distributions()
    for call in calls:
        extra, *modules = re.findall(r'"(\w+)"', call)
        named = {re.split(r"[\[<>=]", requirement)[0] for requirement in EXTRAS[extra]}
        assert all(named & set(installed[module]) for module in modules), call


def test_the_cause_of_an_error_is_what_the_system_says() -> None:
    """Libraries put it at the end of a message of several hundred characters, and some print a query in more lines."""
    # As requests' errors, which are errors of the system without its number.
    retried = OSError("Max retries exceeded (Caused by [Errno 111] Connection refused)")
    retried.__context__ = ConnectionRefusedError(111, "Connection refused")
    failed = RuntimeError(f"API request failed with {retried}")
    failed.__cause__ = retried
    assert cause(failed) == "[Errno 111] Connection refused"
    assert cause(RuntimeError("not a database\n[SQL: SELECT 1]")) == "not a database"
    page = cause(RuntimeError("error 404, body: <html> " + 50_000 * "word "))
    assert page.startswith("error 404, body: <html> word")
    assert page.endswith(" word ...")
    assert len(page) <= 200
    away = RuntimeError("no answer")
    away.__context__ = TimeoutError("timed out")
    assert cause(away) == "timed out"
    ours = StorageError("a/b: not read")
    ours.__cause__ = FileNotFoundError(2, "No such file")
    assert cause(ours) == "a/b: not read"
