"""What the stages import: each of these libraries costs a stage, and each test that starts one, up to a second."""

import subprocess
import sys

from imports import ROOT

HEAVY = ("torch", "torch._dynamo", "torchvision", "matplotlib", "sklearn", "scipy", "pandas", "mlflow", "streamlit")
# In the order of a process that needs more and more, and what each line adds.
STEPS = {
    "import pipeline.cli, leanresnet.data.sources, leanresnet.tracking.mlflow_client, leanresnet.tracking.run": set(),
    "import leanresnet.models.checkpoint": {"torch"},
    "import leanresnet.data.division": {"matplotlib"},
    "import leanresnet.evaluation.report, leanresnet.tracking.log_outputs": set(),
    "import leanresnet.jobs.train_job, leanresnet.training.tasks": set(),
    "import helpers; helpers.tiny_net().train()(helpers.random_images(2))": set(),
}


def test_a_stage_imports_what_it_needs_and_nothing_else() -> None:
    script = "import sys\n" + "".join(
        f"{step}\nprint(*(name for name in {HEAVY} if name in sys.modules))\n" for step in STEPS
    )
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    expected: set[str] = set()
    for (step, added), line in zip(STEPS.items(), done.stdout.splitlines(), strict=True):
        expected |= added
        assert set(line.split()) == expected, step
