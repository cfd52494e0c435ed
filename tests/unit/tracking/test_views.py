"""The saved views of the experiment."""

import json
from pathlib import Path

import pytest
from databases import place_database

from leanresnet.tracking import views
from leanresnet.tracking.connection import connect, page_addresses

# What a window of 1400 pixels leaves beside MLflow's menu, the boxes to select runs and their dates.
ROOM = 925


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").touch()
    place_database(tmp_path)
    monkeypatch.chdir(tmp_path)


def tags() -> dict[str, str]:
    return dict(connect().get_experiment_by_name("leanresnet").tags)


def test_the_experiment_has_views_and_each_address_opens_one() -> None:
    addresses = page_addresses()
    assert list(addresses) == ["results", "charts", "sweep"]
    for name, address in addresses.items():
        kept = json.loads(tags()[f"mlflow.sharedViewState.{address.partition('viewStateShareKey=')[2].split('&')[0]}"])
        state = json.loads(kept["state"])
        assert kept["name"] == name
        assert kept["createdAt"] == kept["updatedAt"] > 0
        assert state["columnOrder"] == ["attributes.`Run Name`", *state["selectedColumns"]]
        assert ("compareRunCharts" in state) == address.endswith("&compareRunsMode=CHART")
        # Otherwise the charts hide all runs but the first ten.
        assert state.get("runsHiddenMode") == ("SHOW_ALL" if "compareRunCharts" in state else None)
        assert {each["metricSectionId"] for each in state.get("compareRunCharts", [])} <= {name}


def test_a_view_that_was_edited_stays_and_one_that_was_deleted_returns() -> None:
    client, before = connect().MlflowClient(), tags()
    experiment = client.get_experiment_by_name("leanresnet").experiment_id
    client.set_experiment_tag(experiment, "mlflow.sharedViewState.results", "mine")
    client.delete_experiment_tag(experiment, "mlflow.sharedViewState.sweep")
    after = tags()
    assert after.keys() == before.keys()
    assert after["mlflow.sharedViewState.results"] == "mine"
    assert after["mlflow.sharedViewState.charts"] == before["mlflow.sharedViewState.charts"]


def test_the_results_fit_into_the_window() -> None:
    assert views.NAME_WIDTH + sum(views.RESULTS.values()) <= ROOM
