"""The notebook of docs/, as a reader runs it: its cells in order, on the results of the demo."""

import json
import os

from conftest import Checkout, outside_environment
from forked import run_code
from imports import ROOT

CELLS = json.loads((ROOT / "docs/tour.ipynb").read_text())["cells"]


def test_it_shows_the_results_of_the_demo_and_makes_only_the_evaluations_stale(checkout: Checkout) -> None:
    before = (checkout.folder / "params.yaml").read_bytes()
    code = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
    first = "import matplotlib, warnings\nmatplotlib.use('agg')\nwarnings.simplefilter('error')\n"
    path = f"{checkout.folder}{os.pathsep}{checkout.folder / 'src'}"
    done = run_code(first + code, checkout.folder, outside_environment(PYTHONPATH=path))
    assert done.returncode == 0, done.stderr
    assert (checkout.folder / "params.yaml").read_bytes() == before
    report = json.loads((checkout.folder / "results/student/test.json").read_text())
    assert f"the results of {checkout.folder}\n" in done.stdout
    assert f"{report['model/parameters']:,} parameters, {report['model/macs']:,} multiply-accumulates" in done.stdout
    assert done.stdout.count(f"{report['test/accuracy']:.2%}") >= 2
    assert "stages to run: evaluate@baseline, evaluate@teacher, evaluate@student\n" in done.stdout


def test_it_is_kept_without_outputs() -> None:
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in CELLS)
