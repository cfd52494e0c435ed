"""The division of a data set into the training, the validation and the test split, with a report on them."""

from pathlib import Path

from leanresnet.config.schema import SplitSettings
from leanresnet.data.preview import samples
from leanresnet.data.sources import read_source
from leanresnet.data.splits import hold_out, save_split
from leanresnet.errors import DataError, warn
from leanresnet.files import save_figure, save_json


def divide(settings: SplitSettings, source: Path, out: Path, report: Path) -> None:
    """Write the three splits to `out`, and their counts and a picture to `report`.

    Args:
        settings: the section of params.yaml.
        source: the folder that `data.sources.fetch_source` wrote.
        out: the folder of the splits.
        report: the folder of split.json and samples.png.

    Raises:
        ConfigError: if there are too few images for these settings.
        DataError: if the source is not a data set, or no training image of a class is left.
    """
    training, test = read_source(source)
    train, validation = hold_out(training, settings.validation, settings.seed)
    if settings.training not in (None, len(train)):
        _, train = hold_out(train, settings.training, settings.seed, "split.training")
    # A rare class of unequal ones may be rounded to no image.
    for name in (name for name, images in train.counts().items() if not images):
        raise DataError(f"training images: none of class {name!r} is left, expected: a larger split.training")
    unmeasured = [name for name, images in validation.counts().items() if not images]
    if unmeasured:
        warn(f"split.validation = {settings.validation}: no image of class {', '.join(unmeasured)}")
    about = {}
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        save_split(part, out / f"{name}.safetensors")
        about[name] = {"images": len(part), "by_class": part.counts(), "sha256": part.digest()}
    save_json({"dataset": train.dataset, **about}, report / "split.json")
    save_figure(samples(train), report / "samples.png")
