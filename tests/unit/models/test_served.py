"""What a server hands a model on: pixels, or numbers that are none."""

import io
import json
import math
import warnings

import pytest
import torch
from helpers import random_images, tiny_net
from mlflow.models import infer_signature
from mlflow.utils.proto_json_utils import parse_tf_serving_input
from torch import Tensor, nn

from leanresnet.models.ensemble import Ensemble
from leanresnet.models.served import Served


@pytest.fixture(scope="module", params=["one", "ensemble", "exported"])
def served(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "one":
        return Served(tiny_net()).eval()
    if request.param == "ensemble":
        return Served(Ensemble([tiny_net(0), tiny_net(1)])).eval()
    file = io.BytesIO()
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(Served(tiny_net()).eval(), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=shapes)
    with warnings.catch_warnings():
        # As in tracking/mlflow_client.py.
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(program, file)
    return torch.export.load(io.BytesIO(file.getvalue())).module()


@torch.no_grad()
def test_pixels_are_answered_as_ever(served: nn.Module) -> None:
    images = random_images(3)
    net = Ensemble([tiny_net(0), tiny_net(1)]) if isinstance(getattr(served, "net", None), Ensemble) else tiny_net()
    torch.testing.assert_close(served(images.float()), net.eval()(images))


@pytest.mark.parametrize("number", [0.5, -1.0, 256.0, 254.5, math.nan, math.inf, -math.inf])
def test_another_number_among_them_is_refused(served: nn.Module, number: float) -> None:
    images = random_images(3).float()
    images[1, 2, 3, 4] = number
    with pytest.raises(RuntimeError, match="a number is not a pixel, expected: whole numbers from 0 to 255"):
        served(images)


def test_what_json_brings_arrives_as_it_was_sent() -> None:
    """Under a signature of integers, MLflow would cut 0.9 to 0."""
    net = Served(tiny_net()).eval()
    images = random_images(2)
    schema = infer_signature(images.float().numpy()).inputs

    def answer(sent: Tensor) -> Tensor:
        """As MLflow's server reads a request."""
        return net(torch.from_numpy(parse_tf_serving_input(json.loads(json.dumps({"inputs": sent.tolist()})), schema)))

    assert torch.equal(answer(images), net(images.float()))
    with pytest.raises(RuntimeError, match="a number is not a pixel"):
        answer(images / 255)
