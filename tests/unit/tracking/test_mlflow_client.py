"""What a model in MLflow's own format costs."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import CLASSES, tiny_model, tiny_net

from leanresnet.models.checkpoint import save_model
from leanresnet.tracking.mlflow_client import log_model


def test_installed_packages_are_not_searched_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.utils import environment, requirements_utils

    save_model(tiny_net().state_dict(), tiny_model(), CLASSES, {"name": "baseline"}, tmp_path)
    monkeypatch.setattr(requirements_utils, "_init_packages_to_modules_map", lambda: pytest.fail("searched"))
    written: list[list[str]] = []

    def log(net: object, pip_requirements: list[str], **_: object) -> None:
        written.append(environment._process_pip_requirements([], pip_requirements)[1])

    flavor = SimpleNamespace(log_model=log)
    start_run = lambda run_id: nullcontext()  # noqa: E731
    log_model(SimpleNamespace(pytorch=flavor, start_run=start_run, __version__="3.17.2"), "run", tmp_path)
    assert [each.partition("==")[0] for each in written[0]] == ["torch", "mlflow"]
