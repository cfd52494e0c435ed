"""The data set that params.yaml names: the local copy of it, and how large it is."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leanresnet.config.schema import Params


def local_copy(dataset: str) -> Path | None:
    """Return the local copy of a data set that an environment variable names, or None."""
    from leanresnet.data.download import VARIABLES

    named = os.environ.get(VARIABLES.get(dataset, ""))
    return Path(named) if named else None


def size_of_data(params: Path, config: "Params", at_hand: bool = True) -> tuple[int, int | None]:
    """Return the numbers of classes and of training images; of images that are not at hand, a warning and (10, None).

    Args:
        params: the file of `config`, beside which the stages of a workspace write.
        at_hand: whether to look at the images that the environment names, which are not those of a preset.
    """
    from leanresnet.config.schema import CLASSES
    from leanresnet.data.download import VARIABLES
    from leanresnet.data.sources import known_size
    from leanresnet.errors import warn

    settings = config.download
    local = local_copy(settings.dataset) if at_hand else None
    found = known_size(settings, params.parent / "data" / "source", local)
    if found is None:
        known = f"{VARIABLES[settings.dataset]} names them"
        warn(f"{params}: the images of download.sha256 are not at hand, so {CLASSES} classes are assumed; {known}")
    return found or (CLASSES, None)
