"""A comparison as one HTML file that needs no network, no script and no other file."""

import base64
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from leanresnet.analysis import charts
from leanresnet.analysis.comparison import NUMBERS, STUDY, Comparison
from leanresnet.analysis.disagreement import Disagreement
from leanresnet.data.splits import Split
from leanresnet.files import save_text
from leanresnet.text import plain

# The colour of lines and text in the charts, which is replaced by the page's own, since that depends on dark mode.
INK = "#010203"
IMAGES = 24
# More params than these have a table of their own, in which each param is a row.
MOST_COLUMNS = 6


def write_page(comparison: Comparison, differ: Disagreement | None, test: Split | None, path: Path) -> None:
    """Write a page with the table, the curves and the accuracy over each cost.

    Args:
        comparison: the table.
        differ: the predictions of two models, whose differences are shown, or None.
        test: the test split, or None. Its images are shown if the two models were evaluated on it.
        path: the file to write.

    Raises:
        StorageError: if the file cannot be written.
    """
    groups = comparison.groups
    count = sum(map(len, groups))
    drawn = {"Validation by epoch": charts.curves(groups)} if groups[0][0].validation() else {}
    for cost in charts.COSTS:
        if charts.costs_differ(groups, cost):
            drawn[f"Accuracy over {cost}"] = charts.trade_off(groups, cost)
    templates = PackageLoader("leanresnet.analysis")
    environment = Environment(
        loader=templates,
        autoescape=select_autoescape(),
        finalize=_finalized,
        trim_blocks=True,
    )
    text = environment.get_template("comparison.html").render(
        tables=_tables(comparison),
        notes=comparison.notes,
        runs="1 run" if count == 1 else f"{count} runs",
        numbers=NUMBERS,
        study=STUDY,
        colors=[charts.color(number) for number in range(len(groups))],
        charts={title: _svg(figure) for title, figure in drawn.items()},
        differ=differ,
        confusion=_svg(charts.confusion_difference(differ.confusion(), differ.classes)) if differ is not None else None,
        images=_images(differ, test) if differ is not None and test is not None else [],
    )
    save_text(text, path)


def _tables(comparison: Comparison) -> list[tuple[list[str], list[list[str]]]]:
    """Return the header and the rows of each table; more params than runs get a table of their own, with a row each."""
    header, rows, params = comparison.header, comparison.rows, comparison.params
    if params <= max(MOST_COLUMNS, len(rows)):
        return [(header, rows)]
    figures = len(header) - params
    names = [f"{run} ({model})" for run, model, *_ in rows]
    by_param = [[header[place], *(row[place] for row in rows)] for place in range(figures, len(header))]
    return [(header[:figures], [row[:figures] for row in rows]), (["param", *names], by_param)]


def _finalized(value: object) -> object:
    """Return a value as the template writes it; a chart, which is marked as safe, is not changed."""
    return value if hasattr(value, "__html__") else plain(value)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # matplotlib makes ids from the salt, so that the same chart is the same text.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "leanresnet"}):
        _ink(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _ink(figure: Figure) -> None:
    """Give everything that is neither a curve nor a cell the colour `INK`."""
    for axes in figure.axes:
        axes.tick_params(colors=INK)
        for spine in axes.spines.values():
            spine.set_edgecolor(INK)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set_color(INK)
        legend = axes.get_legend()
        if legend is not None:
            legend.get_frame().set_alpha(0)
            for text in legend.get_texts():
                text.set_color(INK)
        for text in axes.texts:
            # A number on a dark cell is white on any page.
            if text.get_color() != "white":
                text.set_color(INK)


def _images(differ: Disagreement, test: Split) -> list[dict[str, str]]:
    """Return the first images on which the two models differ; none if they were evaluated on another split."""
    truth = [test.classes[label] for label in test.labels.tolist()]
    if truth != differ.truth:
        return []
    first, second = differ.answers
    return [
        {"source": _png(test.images[place]), "true": truth[place], "first": first[place], "second": second[place]}
        for place in differ.where[:IMAGES]
    ]


def _png(image: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image.permute(1, 2, 0))).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
