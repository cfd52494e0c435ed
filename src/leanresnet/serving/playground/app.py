"""The playground's page. Streamlit runs this file at each action of a visitor, with the arguments of `show`."""

import sys
from pathlib import Path

import streamlit as st
from PIL import Image
from torch import Tensor

from leanresnet.compute.device import choose_device, exact_float32
from leanresnet.data.images import SUFFIXES, decode
from leanresnet.data.splits import Split, load_split
from leanresnet.errors import LeanResNetError
from leanresnet.models.checkpoint import DESCRIPTION, Checkpoint, load_model
from leanresnet.models.resnet import ResNet
from leanresnet.serving.inference import find_models, probabilities
from leanresnet.serving.likeness import NEIGHBOURS, Likeness
from leanresnet.text import markdown

Answers = dict[str, dict[str, float]]
SHOWN_PIXELS = 256
# Numbers of images of the test split that are offered, and that an image is compared with.
SAMPLES, COMPARED = 6, 1000


@st.cache_resource(max_entries=8, show_spinner="Reading the models")
def _load(folder: Path, device: str, written: int) -> Checkpoint:
    """Load a model; it is cached by the arguments, so another time of writing, `written`, loads it again."""
    return load_model(folder, choose_device(device))


@st.cache_resource(max_entries=2, show_spinner="Reading the test split")
def _load_test(path: Path, written: int) -> Split:
    """Load the test split; it is cached like a model."""
    return load_split(path)


@st.cache_resource(max_entries=2, show_spinner="Comparing the images of the test split")
def _likeness(_model: Checkpoint, sha256: str, path: Path, written: int) -> Likeness | None:
    """Return what a model knows of the test split, or None if that is not known; cached by weights and file."""
    test = _load_test(path, written)
    if not isinstance(_model.net, ResNet) or len(test) <= NEIGHBOURS:
        return None
    return Likeness(_model.net, test.images[:: -(-len(test) // COMPARED)])


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns


def _test_split(path: Path, classes: tuple[str, ...]) -> Split | None:
    """Return the test split if there is one with these classes."""
    test = _load_test(path, _written(path)) if path.exists() else None
    return test if test is not None and test.classes == classes else None


def _is_unlike(model: Checkpoint, path: Path, image: Tensor) -> bool:
    """Return whether the image is unlike those of the test split."""
    with exact_float32():
        likeness = _likeness(model, model.sha256, path, _written(path))
        return likeness is not None and likeness.is_unlike(image)


def _ask(models: dict[str, Checkpoint], image: Tensor) -> Answers:
    """Return the probability of each class by each model."""
    with exact_float32():
        return {
            name: dict(zip(model.classes, probabilities(model, image[None])[0].tolist(), strict=True))
            for name, model in models.items()
        }


def _choice(shares: dict[str, float]) -> str:
    return max(shares, key=lambda name: shares[name])


def _show_verdict(answers: Answers, unlike: bool) -> None:
    """Show whether the models agree; for an image that is unlike the data, an agreement is no good sign."""
    sides: dict[str, list[str]] = {}
    for name, shares in answers.items():
        sides.setdefault(markdown(_choice(shares)), []).append(name)
    if len(sides) > 1:
        st.warning("The models differ. " + " ".join(f"**{chosen}**: {', '.join(by)}." for chosen, by in sides.items()))
    elif len(answers) > 1:
        box = st.info if unlike else st.success
        box(f"All {len(answers)} models agree: **{next(iter(sides))}**.")
    else:
        st.info(f"The model predicts **{next(iter(sides))}**.")


def _show_choices(answers: Answers, models: dict[str, Checkpoint]) -> None:
    row = st.container(horizontal=True, gap="medium")
    for name, shares in answers.items():
        chosen = _choice(shares)
        size = f":gray[:small[{models[name].parameters:,} parameters]]"
        row.markdown(f":gray[{name}]  \n**{markdown(chosen)}** {shares[chosen]:.2%}  \n{size}", width="content")


def _show_shares(answers: Answers) -> None:
    """Show a table of all classes with their probability by each model, the most likely on average first."""
    classes = dict.fromkeys(name for shares in answers.values() for name in shares)
    order = sorted(classes, key=lambda name: -sum(shares.get(name, 0.0) for shares in answers.values()))
    table = {"class": order} | {name: [100 * shares.get(of, 0.0) for of in order] for name, shares in answers.items()}
    # The columns are so narrow that a phone shows all of them.
    bar = st.column_config.ProgressColumn(width=88, min_value=0, max_value=100, format="%.2f%%", color="blue")
    st.dataframe(table, hide_index=True, height="content", column_config=dict.fromkeys(answers, bar))


def _choose_sample(test: Split) -> int | None:
    """Show an image of each of the first classes of the test split, and return the index of the chosen one."""
    places = test.first_of_classes(SAMPLES)
    names = [markdown(test.classes[test.labels[place]]) for place in places]
    label = "Or an image of the test split"
    st.markdown(f":small[{label}]")
    row = st.container(horizontal=True, gap="small")
    for place, name in zip(places, names, strict=True):
        row.image(_picture(test.images[place], SHOWN_PIXELS // 4), caption=name)
    return st.pills(label, places, format_func=lambda place: names[places.index(place)], label_visibility="collapsed")


def _picture(image: Tensor, side: int) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.NEAREST)


def _choose_image(test: Split | None) -> tuple[Tensor, str] | None:
    """Return the uploaded image, or else the chosen sample, with its caption; None if there is neither."""
    caption = "What they see: 32x32 pixels"
    upload = st.file_uploader("An image, JPEG or PNG", type=[suffix.removeprefix(".") for suffix in SUFFIXES])
    if upload is not None:
        return decode(upload.getvalue(), upload.name), caption
    place = _choose_sample(test) if test is not None else None
    if test is None or place is None:
        return None
    return test.images[place], f"{caption} of the class {markdown(test.classes[test.labels[place]])}"


def show(folder: Path, test_path: Path, device: str) -> None:
    """Show the page for the models in `folder`, with images of the test split if it is there."""
    st.set_page_config("leanresnet playground")
    st.title("What do the models see?")
    try:
        models = {
            name: _load(folder / name, device, _written(folder / name / DESCRIPTION)) for name in find_models(folder)
        }
        last = list(models.values())[-1]
        test = _test_split(test_path, last.classes)
        chosen = _choose_image(test)
        if chosen is None:
            return
        image, caption = chosen
        answers = _ask(models, image)
        unlike = test is not None and _is_unlike(last, test_path, image)
    except LeanResNetError as error:
        st.error(markdown(str(error)))
        return
    if unlike:
        st.warning("This image is unlike the images of the data set, so the predictions say little about it.")
    left, right = st.columns([1, 2])
    left.image(_picture(image, SHOWN_PIXELS), caption=caption)
    with right:
        _show_verdict(answers, unlike)
        _show_choices(answers, models)
    _show_shares(answers)


if __name__ == "__main__":
    show(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
