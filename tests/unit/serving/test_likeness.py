"""Which images count as unlike those that a network knows."""

import pytest
import torch
from helpers import synthetic_split, tiny_net

from leanresnet.serving.likeness import KNOWN_SHARE, Likeness


@pytest.fixture(scope="module")
def likeness() -> Likeness:
    return Likeness(tiny_net().eval(), synthetic_split(300, noise=0.1).images)


def test_other_images_of_the_same_kind_are_like_the_known_ones(likeness: Likeness) -> None:
    others = synthetic_split(100, seed=1, noise=0.1).images
    assert sum(likeness.is_unlike(image) for image in others) <= 5


def test_images_of_another_kind_are_unlike_them(likeness: Likeness) -> None:
    page = torch.full((3, 32, 32), 250, dtype=torch.uint8)
    page[:, ::4, 3:25] = 60
    for image in (page, torch.zeros_like(page), torch.full_like(page, 255)):
        assert likeness.is_unlike(image)


def test_all_but_a_hundredth_of_the_known_images_are_known(likeness: Likeness) -> None:
    known = synthetic_split(300, noise=0.1).images
    assert sum(likeness.is_unlike(image) for image in known) <= round(300 * (1 - KNOWN_SHARE))


def test_the_distance_is_the_one_to_the_fifth_neighbour(likeness: Likeness) -> None:
    """Four copies of an image do not make it a known kind; five do."""
    known, odd = synthetic_split(300, noise=0.1).images, torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for copies, unlike in ((4, True), (5, False)):
        found = Likeness(tiny_net().eval(), torch.cat([known, odd.expand(copies, -1, -1, -1)]))
        assert found.is_unlike(odd[0]) is unlike


def test_the_limit_is_that_of_the_known_images_from_each_other(likeness: Likeness) -> None:
    """The nearest image of each is the image itself."""
    features = likeness._features(synthetic_split(300, noise=0.1).images)
    fifth = torch.cdist(features, features).sort(1).values[:, 5]
    assert int((fifth > likeness._limit).sum()) == 3
