"""The saved views of the experiment, with which MLflow's page opens on the results.

MLflow keeps a saved view as a tag of the experiment: its name, its times and its state, which is JSON in JSON. The keys
of the state are those of MLflow 3.17; it fills a key that is missing with its default.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import time_ns
from typing import Any

TAG = "mlflow.sharedViewState."
NAME, NAME_WIDTH = "attributes.`Run Name`", 135
RUNS_IN_CHART = 100


def metric(key: str) -> str:
    return f"metrics.`{key}`"


def param(key: str) -> str:
    return f"params.`{key}`"


TEST, VALIDATION = "test/accuracy", "val/best_accuracy"
PARAMETERS, MACS = "model/parameters", "model/macs"
# Columns with their widths in pixels. Beside the run's name, they fit into a window of 1400 pixels. MLflow cuts longer
# headers off, so the two that begin with the same word have room for all of it.
RESULTS = {
    metric(TEST): 92,
    metric(VALIDATION): 88,
    metric(PARAMETERS): 86,
    metric(MACS): 80,
    metric("speed/latency_ms"): 74,
    param("distill.teacher"): 72,
    param("optimizer.name"): 102,
    param("optimizer.lr"): 84,
    param("epochs"): 60,
    param("seed"): 46,
}
SWEEP = {
    "tags.`dvc.experiment`": 130,
    metric(VALIDATION): 100,
    metric(TEST): 100,
    param("optimizer.name"): 75,
    param("optimizer.lr"): 70,
    param("optimizer.weight_decay"): 90,
    param("batch_size"): 80,
    param("epochs"): 70,
    param("seed"): 60,
}


@dataclass(frozen=True)
class View:
    """A saved view.

    Args:
        name: its name in MLflow's list of views.
        order_by: the column by which the runs are sorted, the largest value first.
        columns: the columns of the table beside the run's name, in their order, with their widths in pixels.
        charts: the settings of the charts, see `line`, `scatter`, `bar` and `parallel`.
        opens_charts: whether the page opens on the charts instead of on the table.
    """

    name: str
    order_by: str
    columns: dict[str, int]
    charts: tuple[dict[str, Any], ...] = ()
    opens_charts: bool = False

    def state(self) -> dict[str, Any]:
        """Return the state as MLflow's page reads it."""
        shown: dict[str, Any] = {
            "orderByKey": self.order_by,
            "orderByAsc": False,
            "selectedColumns": list(self.columns),
            "columnOrder": [NAME, *self.columns],
            "columnWidths": {NAME: NAME_WIDTH, **self.columns},
        }
        if self.charts:
            ours = {"deleted": False, "isGenerated": False}
            section = {"uuid": self.name, "name": self.name, "display": True, "isReordered": True, "columns": 2}
            in_section = {"metricSectionId": self.name, "runsCountToCompare": RUNS_IN_CHART}
            # Without this key, MLflow sorts the sections that it makes from the names of metrics before this one.
            shown["isAccordionReordered"] = True
            # By default, the charts show the first ten runs alone.
            shown["runsHiddenMode"] = "SHOW_ALL"
            shown["compareRunSections"] = [{**section, **ours}]
            shown["compareRunCharts"] = [
                {"uuid": f"{self.name}-{place}", **in_section, **ours, **chart}
                for place, chart in enumerate(self.charts)
            ]
        return shown


def line(key: str) -> dict[str, Any]:
    """Return a chart of a metric by epoch, which is not smoothed."""
    values = {"metricKey": key, "selectedMetricKeys": [key], "xAxisKey": "step"}
    return {"type": "LINE", **values, "lineSmoothness": 0, "useGlobalLineSmoothing": False}


def scatter(x: str, y: str) -> dict[str, Any]:
    """Return a chart of one metric over another, with a point for each run."""
    return {"type": "SCATTER", "xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}


def bar(key: str) -> dict[str, Any]:
    """Return a chart with a bar for each run. MLflow draws bars of metrics that every run has at step 0 alone."""
    return {"type": "BAR", "metricKey": key}


def parallel(params: Iterable[str], metrics: Iterable[str]) -> dict[str, Any]:
    """Return a chart of parallel coordinates, with a line for each run."""
    return {"type": "PARALLEL", "selectedParams": list(params), "selectedMetrics": list(metrics)}


# The first one is what MLflow's page opens on.
VIEWS = (
    View("results", metric(TEST), RESULTS),
    View(
        "charts",
        metric(TEST),
        RESULTS,
        (
            bar(TEST),
            line("val/accuracy"),
            scatter(PARAMETERS, TEST),
            scatter(MACS, TEST),
            parallel(("optimizer.name", "optimizer.lr", "epochs", "distill.teacher"), [PARAMETERS, TEST]),
        ),
        opens_charts=True,
    ),
    View(
        "sweep",
        metric(VALIDATION),
        SWEEP,
        (
            parallel(("optimizer.name", "optimizer.lr", "optimizer.weight_decay", "batch_size"), [VALIDATION]),
            line("val/accuracy"),
            line("train/loss"),
            bar(TEST),
        ),
        opens_charts=True,
    ),
)


def missing(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that an experiment with these tags lacks. A view that it has may have been edited, and stays."""
    now = time_ns() // 1_000_000
    return {
        f"{TAG}{view.name}": _compact(
            {"name": view.name, "createdAt": now, "updatedAt": now, "state": _compact(view.state())}
        )
        for view in VIEWS
        if f"{TAG}{view.name}" not in tags
    }


def _compact(content: dict[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))


def addresses(experiment_id: str) -> dict[str, str]:
    """Return the addresses of the views by their names, relative to that of MLflow's page."""
    table = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey="
    return {view.name: f"{table}{view.name}{'&compareRunsMode=CHART' if view.opens_charts else ''}" for view in VIEWS}
