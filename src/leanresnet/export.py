"""A trained model in formats that other programs run, each checked against the original."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from leanresnet.checkpoint import Checkpoint
from leanresnet.config import IMAGE_SIZE
from leanresnet.errors import DataError
from leanresnet.files import not_written
from leanresnet.predictions import median_seconds

Format = Literal["onnx", "torchscript", "pt2"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torchscript": ".ts", "pt2": ".pt2"}
# Batches on which the exported model must say what the original does, within this.
CHECKED_BATCHES, TOLERANCE = (1, 2, 7), 1e-4
REPEATS = 20
Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """`difference` is the largest of any logit; the latencies are medians for one image, in milliseconds."""

    difference: float
    latency_ms: float
    torch_latency_ms: float


def export(model: Checkpoint, form: Format, path: Path) -> Exported:
    """Write `path`: images (B, 3, 32, 32) uint8, any B >= 1, in; logits (B, classes) float32 out.

    The file appears only where the exported model, loaded again, says what the original does.

    Raises:
        DataError: it does not.
        StorageError: the file cannot be written.
    """
    write, load = {
        "onnx": (_write_onnx, _load_onnx),
        "torchscript": (_write_torchscript, _load_torchscript),
        "pt2": (_write_pt2, _load_pt2),
    }[form]
    net = model.net.cpu().eval()
    generator = torch.Generator().manual_seed(0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder, torch.no_grad():
            partial = Path(folder) / path.name
            write(net, _images(2, generator), partial)
            run = load(partial)
            batches = [_images(count, generator) for count in CHECKED_BATCHES]
            difference = max(float((run(batch) - net(batch)).abs().max()) for batch in batches)
            if not difference <= TOLERANCE:
                raise DataError(f"{path}: its logits differ by {difference:.2g}, accepted: up to {TOLERANCE:g}")
            latencies = [1000 * median_seconds(each, batches[0], REPEATS) for each in (run, net)]
            partial.replace(path)
    except OSError as error:
        raise not_written(error.filename or path, error) from error
    return Exported(difference, *latencies)


def _images(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(256, (count, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)


def _any_batch() -> tuple[dict[int, object]]:
    return ({0: torch.export.Dim("batch", min=1)},)


def _write_onnx(net: nn.Module, images: Tensor, path: Path) -> None:
    program = torch.onnx.export(
        net,
        (images,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=_any_batch(),
    )
    assert program is not None
    program.save(path, external_data=False)


def _load_onnx(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_torchscript(net: nn.Module, images: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        # Deprecated in favour of pt2, and still what much of C++ and mobile code loads.
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        torch.jit.trace(net, images).save(path)


def _load_torchscript(path: Path) -> Runner:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        loaded: Runner = torch.jit.load(path)
    return loaded


def _write_pt2(net: nn.Module, images: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        # torch says this of every exported buffer, and on the CPU it does not matter.
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(torch.export.export(net, (images,), dynamic_shapes=_any_batch()), path)


def _load_pt2(path: Path) -> Runner:
    loaded: Runner = torch.export.load(path).module()
    return loaded
