"""The handwritten digits that scikit-learn bundles, a data set that needs no download.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits" (UCI, 1998).
"""

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from leanresnet.data.splits import Split, hold_out

TEST_IMAGES = 360
TEST_SEED = 0


def read_digits() -> tuple[Split, Split]:
    """Return 1,437 training and 360 test images, scaled from 8x8 in 17 levels of grey to 32x32 RGB.

    scikit-learn has no test split, so 360 images are held out here, the same ones for every seed in params.yaml.
    """
    bundle = load_digits()
    grey = torch.from_numpy(bundle.images).float().unsqueeze(1) * (255 / 16)
    images = F.interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    whole = Split(
        images.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous(),
        torch.from_numpy(bundle.target).long(),
        tuple(str(name) for name in bundle.target_names),
        "digits",
    )
    return hold_out(whole, TEST_IMAGES, TEST_SEED)
