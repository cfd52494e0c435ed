"""The pictures of a model: what stands where."""

import numpy as np
import torch
from helpers import random_images

from leanresnet.data.preview import image_grid
from leanresnet.data.splits import Split
from leanresnet.evaluation.figures import confusion_matrix, mistakes
from leanresnet.evaluation.predictions import Predictions


def test_a_confusion_matrix_has_its_counts_by_row_and_its_colours_by_true_class() -> None:
    counts = torch.tensor([[3, 1], [0, 8]])
    axes, _ = confusion_matrix("model", counts, ("cat", "dog")).axes
    (image,) = axes.images
    np.testing.assert_allclose(np.asarray(image.get_array()), [[0.75, 0.25], [0, 1]])
    numbers = {text.get_position(): text.get_text() for text in axes.texts}  # (x, y)
    assert numbers == {(0, 0): "3", (1, 0): "1", (0, 1): "0", (1, 1): "8"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_a_mistake_has_the_predicted_class_its_share_and_the_true_class() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    split = Split(random_images(3), torch.tensor([0, 0, 0]), ("cat", "dog"), "folder")
    (axes,) = mistakes("model", split, Predictions(probabilities, split.labels), 2).axes
    assert [text.get_text() for text in axes.texts] == ["dog 80%\nis cat", "dog 70%\nis cat"]
    shown = [np.asarray(image.get_array()) for image in axes.images]
    assert np.array_equal(shown, split.images[[1, 2]].permute(0, 2, 3, 1).numpy())


def test_images_fill_one_row_after_the_other() -> None:
    (axes,) = image_grid(random_images(5), list("abcde"), columns=2).axes
    places = [text.get_position() for text in axes.texts]
    assert [x for x, _ in places] == [0, 1, 0, 1, 0]
    tops = [y for _, y in places]
    assert tops[0] == tops[1] < tops[2] == tops[3] < tops[4]
    for text, image in zip(axes.texts, axes.images, strict=True):
        left, right, _, top = image.get_extent()
        x, y = text.get_position()
        assert left < x < right
        assert 0 < top - y < 0.1
