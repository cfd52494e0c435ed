"""What a run is called."""

import pytest

from leanresnet.tracking.log_outputs import run_metadata

PROVENANCE = {
    "name": "baseline",
    "stage": "train@baseline",
    "params": {"optimizer.name": "sgd", "epochs": 30, "seed": 1},
    "train_md5": "0",
    "validation_md5": "1",
    "dataset": "digits",
    "teacher_sha256": "",
}


@pytest.mark.parametrize(("experiment", "name"), [("", "baseline-sgd-e30"), ("sweep-0.1", "sweep-0.1-baseline")])
def test_a_run_of_an_experiment_has_its_name(experiment: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", experiment)
    assert run_metadata(PROVENANCE)[0] == name
