"""The export of a trained model to formats that other programs run. Each export is compared with the original."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from leanresnet.config.schema import IMAGE_SIZE
from leanresnet.errors import DataError, require
from leanresnet.evaluation.predictions import median_seconds
from leanresnet.files import save_bytes
from leanresnet.models.checkpoint import Checkpoint

Format = Literal["onnx", "torchscript", "pt2"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torchscript": ".ts", "pt2": ".pt2"}
# Sizes of the batches with which an exported model is checked, and the largest accepted difference of a logit.
CHECKED_BATCHES, TOLERANCE = (1, 2, 7), 1e-4
REPEATS = 20
Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        difference: largest difference of a logit from the original.
        latency_ms, torch_latency_ms: median milliseconds for one image, exported and original.
    """

    difference: float
    latency_ms: float
    torch_latency_ms: float


def export(model: Checkpoint, form: Format, path: Path) -> Exported:
    """Export a model to `path`.

    The exported model maps images (B, 3, 32, 32) uint8, for any B >= 1, to logits (B, classes) float32. The file is
    written only if its logits, after it is loaded again, agree with those of the original.

    Raises:
        ConfigError: if the package that writes or runs the format is not installed.
        DataError: if they do not agree.
        StorageError: if the file cannot be written.
    """
    write, load = {
        "onnx": (_onnx, _load_onnx),
        "torchscript": (_torchscript, _load_torchscript),
        "pt2": (_pt2, _load_pt2),
    }[form]
    net = model.net.cpu().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # The export is made in memory, because torch's own writers abort the process if the disk is full.
        content = write(net, _images(2, generator))
        run = load(content)
        batches = [_images(count, generator) for count in CHECKED_BATCHES]
        # Unlike Python's maximum, torch's is NaN if one of the values is.
        difference = float(torch.stack([(run(batch) - net(batch)).abs().max() for batch in batches]).max())
        if not difference <= TOLERANCE:
            raise DataError(f"{path}: its logits differ by {difference:.2g}, expected: up to {TOLERANCE:g}")
        latencies = [1000 * median_seconds(each, batches[0], REPEATS) for each in (run, net)]
    save_bytes(content, path)
    return Exported(difference, *latencies)


def _images(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(256, (count, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)


def _any_batch() -> tuple[dict[int, object]]:
    return ({0: torch.export.Dim("batch", min=1)},)


class _OfBytes(nn.Module):
    """A network that accepts only uint8; a traced network would return confident predictions for normalised images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise TypeError("images: expected: uint8")
        logits: Tensor = self.net(images)
        return logits


def _onnx(net: nn.Module, images: Tensor) -> bytes:
    require("export", "onnx", "onnxscript", "onnxruntime")
    with warnings.catch_warnings():
        # torch 2.11 warns of its own code.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
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
    content: bytes = program.model_proto.SerializeToString()
    return content


def _load_onnx(content: bytes) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _torchscript(net: nn.Module, images: Tensor) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # TorchScript is deprecated in favour of pt2, but many C++ and mobile programs still load it.
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        torch.jit.save(torch.jit.script(_OfBytes(torch.jit.trace(net, images))), file)
    return file.getvalue()


def _load_torchscript(content: bytes) -> Runner:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        loaded: Runner = torch.jit.load(io.BytesIO(content))
    return loaded


def _pt2(net: nn.Module, images: Tensor) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # torch warns of every exported buffer; the warning does not apply to a CPU.
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(torch.export.export(net, (images,), dynamic_shapes=_any_batch()), file)
    return file.getvalue()


def _load_pt2(content: bytes) -> Runner:
    with warnings.catch_warnings():
        # torch 2.11 warns of its own buffers.
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        loaded: Runner = torch.export.load(io.BytesIO(content)).module()
    return loaded
