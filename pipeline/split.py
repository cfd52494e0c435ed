"""Stage split: train, validation and test, one file each."""

from pathlib import Path

import click

from pipeline.options import params_option, path_option


@click.command()
@params_option
@path_option("--source", "Folder that download wrote.")
@path_option("--out", "Folder for train, validation and test.")
@path_option("--report", "Folder for the counts and the picture.")
def split(params: Path, source: Path, out: Path, report: Path) -> None:
    """Hold validation images out, each class in proportion."""
    from leanresnet import pictures
    from leanresnet.data.sources import read_source
    from leanresnet.data.splits import hold_out, save_split
    from leanresnet.files import save_figure, save_json
    from leanresnet.params import load_params

    settings = load_params(params).split
    training, test = read_source(source)
    train, validation = hold_out(training, settings.validation, settings.seed)
    if settings.training is not None:
        _, train = hold_out(train, settings.training, settings.seed, "split.training")
    about = {}
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        save_split(part, out / f"{name}.safetensors")
        about[name] = {"images": len(part), "by_class": part.counts(), "sha256": part.digest()}
    save_json({"dataset": train.dataset, **about}, report / "split.json")
    save_figure(pictures.samples(train), report / "samples.png")
