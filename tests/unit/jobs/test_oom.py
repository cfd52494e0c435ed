"""A batch too large for the memory there is: a process with a limit of its own."""

from pathlib import Path

import pytest
import torch
from conftest import outside_environment
from forked import run_code
from helpers import synthetic_split, tiny_recipe

from leanresnet.compute.distributed import SINGLE_PROCESS, DistributedContext
from leanresnet.errors import MemoryLimitError
from leanresnet.jobs.oom import is_out_of_memory, largest_fit, run_or_name_batch
from leanresnet.training.fit import Training
from leanresnet.training.losses import CrossEntropy
from leanresnet.training.tasks import TrainingTask
from pipeline import cli

# The limit is one of addresses, which the C library does not give back where they lie between others. Large tensors
# find room in what is free; code that oneDNN would compile for another batch might not, so it has to stay out.
SCRIPT = """
import resource
from pathlib import Path
import torch
from helpers import synthetic_split, tiny_recipe
from leanresnet.data.splits import save_split
from leanresnet.errors import MemoryLimitError
from leanresnet.jobs.train_job import run_training
from leanresnet.training.results import Outputs
from leanresnet.training.tasks import TrainingTask
from leanresnet.training.losses import CrossEntropy

for seed, name in enumerate(("train", "validation")):
    save_split(synthetic_split(2000, seed), Path(name))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
torch.backends.mkldnn.enabled = False
resource.setrlimit(resource.RLIMIT_AS, (used + 350 * 2**20, resource.RLIM_INFINITY))
task = TrainingTask("train@baseline", "params.yaml: train.baseline", CrossEntropy(0.0))
recipe = tiny_recipe(batch_size=2000)
try:
    run_training(
        "baseline", recipe, task, (Path("train"), Path("validation")), Outputs(Path("m"), Path("r")),
        torch.device("cpu"), 60.0,
    )
except MemoryLimitError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_line_names_the_batch_and_one_that_was_tried(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    done = run_code(SCRIPT, cwd=tmp_path, env=outside_environment())
    assert done.returncode == 0, done.stderr
    start = "params.yaml: train.baseline.batch_size = 2000: out of memory, expected: "
    assert done.stdout.startswith(start), done.stdout
    fitting = int(done.stdout.removeprefix(start).split(",")[0])
    assert fitting in (1000, 500, 250, 125, 62)


def test_halves_are_tried_until_one_fits() -> None:
    tried = []

    def step(count: int) -> None:
        tried.append(count)
        if count > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_fit(100, step) == 6
    assert tried == [50, 25, 12, 6]
    assert largest_fit(3, step) is None


def test_another_mistake_is_not_taken_for_it() -> None:
    def step(count: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        largest_fit(100, step)
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))


@pytest.mark.parametrize(
    "message",
    [
        "could not create a primitive",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried",
        "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        "FIND was unable to find an engine to execute this computation",
        "CUDA driver error: out of memory",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_each_library_says_in_words_of_its_own_that_memory_ran_out(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


def refuse(*args: object) -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def test_a_training_that_cannot_be_put_together_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanresnet.training.fit.build_training", refuse)
    task = TrainingTask("train@baseline", "params.yaml: train.baseline", CrossEntropy(0.0))
    split = synthetic_split(20)
    training = Training(tiny_recipe(batch_size=8), task, split, split, torch.device("cpu"), SINGLE_PROCESS)
    expected = (
        r"^params.yaml: train.baseline.batch_size = 8: out of memory, "
        r"expected: more memory, because no smaller batch fits \(CUDA error: CUBLAS_STATUS_ALLOC_FAILED when .*\)$"
    )
    with pytest.raises(MemoryLimitError, match=expected):
        run_or_name_batch(training, None, lambda metrics, step: None, lambda train_state: None)


def test_the_compiled_step_is_forgotten_before_others_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CUDA graph, it would keep the memory of the GPU."""
    done: list[str] = []
    monkeypatch.setattr("leanresnet.training.fit.build_training", refuse)
    monkeypatch.setattr(Training, "try_step", lambda training, images: done.append("tried"))
    monkeypatch.setattr(torch.compiler, "reset", lambda: done.append("forgotten"))
    task, split = TrainingTask("train@baseline", "params.yaml: train.baseline", CrossEntropy(0.0)), synthetic_split(20)
    for kind in (True, "reduce-overhead", False):
        recipe = tiny_recipe(batch_size=8, compile=kind)
        training = Training(recipe, task, split, split, torch.device("cpu"), SINGLE_PROCESS)
        with pytest.raises(MemoryLimitError):
            run_or_name_batch(training, None, lambda metrics, step: None, lambda train_state: None)
    assert done == ["forgotten", "tried", "forgotten", "tried", "tried"]


def test_a_command_that_does_not_train_ends_in_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a teacher or a model to evaluate does that finds no place on the device."""
    monkeypatch.setattr(cli, "cli", lambda **options: refuse())
    assert cli.run() == 7
    out_of_memory = "out of memory (CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`)"
    assert capsys.readouterr().err == f"error: {out_of_memory}, expected: more free memory\n"


def test_processes_share_the_batch_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tries a half of its own part, here 4 of 8 images of a batch of 16."""
    tried: list[int] = []
    monkeypatch.setattr("leanresnet.training.fit.build_training", refuse)
    monkeypatch.setattr(Training, "try_step", lambda training, images: tried.append(images))
    task, split = TrainingTask("train@baseline", "params.yaml: train.baseline", CrossEntropy(0.0)), synthetic_split(20)
    training = Training(tiny_recipe(batch_size=16), task, split, split, torch.device("cpu"), DistributedContext(0, 2))
    with pytest.raises(MemoryLimitError, match="batch_size = 16: out of memory, expected: 8, which was tried and fits"):
        run_or_name_batch(training, None, lambda metrics, step: None, lambda train_state: None)
    assert tried == [4]
