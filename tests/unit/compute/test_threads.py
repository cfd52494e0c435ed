"""How torch's threads wait, which is decided before torch is imported."""

import subprocess
import sys

import pytest
from conftest import outside_environment
from imports import ROOT

from leanresnet.compute.threads import SPINS, share_cores

# The program up to its first command, which would import torch.
PROGRAM = (
    "import leanresnet.__main__ as program, types\n"
    "program.importlib.import_module = lambda name: types.SimpleNamespace(main=lambda: None)\n"
    "try: program.main()\nexcept AssertionError: pass\n"
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS}),
        ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_a_setting_of_the_user_wins(given: dict[str, str], expected: dict[str, str]) -> None:
    environment = dict(given)
    share_cores(environment)
    assert environment == expected


@pytest.mark.parametrize("start", [PROGRAM, "import bench\n"])
def test_the_program_and_the_benchmarks_decide_before_torch_is_imported(start: str) -> None:
    environment = outside_environment(PYTHONPATH=f"{ROOT}:{ROOT / 'src'}")
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        environment.pop(name, None)
    script = f"import os, sys\n{start}print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [SPINS, "False"]
