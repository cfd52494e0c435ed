"""The playground's page. Streamlit runs this file at each action of a visitor, with a folder of models and a device."""

import sys
from pathlib import Path

import streamlit as st
from PIL import Image
from torch import Tensor

from leanresnet.compute.device import choose_device, exact_float32
from leanresnet.data.images import SUFFIXES, decode
from leanresnet.errors import LeanResNetError
from leanresnet.models.checkpoint import DESCRIPTION, Checkpoint, load_model
from leanresnet.serving.inference import find_models, probabilities
from leanresnet.text import markdown

Answers = dict[str, dict[str, float]]
SHOWN_PIXELS = 256


@st.cache_resource(max_entries=8, show_spinner="Reading the models")
def _load(folder: Path, device: str, written: int) -> Checkpoint:
    """Load a model; it is cached by the arguments, so another time of writing, `written`, loads it again."""
    return load_model(folder, choose_device(device))


def _ask(models: dict[str, Checkpoint], image: Tensor) -> Answers:
    """Return the probability of each class by each model."""
    with exact_float32():
        return {
            name: dict(zip(model.classes, probabilities(model, image[None])[0].tolist(), strict=True))
            for name, model in models.items()
        }


def _choice(shares: dict[str, float]) -> str:
    return max(shares, key=lambda name: shares[name])


def _show_verdict(answers: Answers) -> None:
    """Show whether the models agree."""
    sides: dict[str, list[str]] = {}
    for name, shares in answers.items():
        sides.setdefault(markdown(_choice(shares)), []).append(name)
    if len(sides) > 1:
        st.warning("The models differ. " + " ".join(f"**{chosen}**: {', '.join(by)}." for chosen, by in sides.items()))
    elif len(answers) > 1:
        st.success(f"All {len(answers)} models agree: **{next(iter(sides))}**.")
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


def show(folder: Path, device: str) -> None:
    """Show the page for the models in `folder`."""
    st.set_page_config("leanresnet playground")
    st.title("What do the models see?")
    try:
        models = {
            name: _load(folder / name, device, (folder / name / DESCRIPTION).stat().st_mtime_ns)
            for name in find_models(folder)
        }
        upload = st.file_uploader("An image, JPEG or PNG", type=[suffix.removeprefix(".") for suffix in SUFFIXES])
        if upload is None:
            return
        image = decode(upload.getvalue(), upload.name)
        answers = _ask(models, image)
    except LeanResNetError as error:
        st.error(markdown(str(error)))
        return
    left, right = st.columns([1, 2])
    seen = Image.fromarray(image.permute(1, 2, 0).numpy())
    left.image(seen.resize((SHOWN_PIXELS,) * 2, Image.Resampling.NEAREST), caption="What they see: 32x32 pixels")
    with right:
        _show_verdict(answers)
        _show_choices(answers, models)
    _show_shares(answers)


if __name__ == "__main__":
    show(Path(sys.argv[1]), sys.argv[2])
