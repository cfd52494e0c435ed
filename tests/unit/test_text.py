"""Names that somebody else chose, at every place where they leave the library."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from click.testing import CliRunner
from helpers import random_images, synthetic_split
from matplotlib.figure import Figure

import pipeline.check as check
from leanresnet.analysis import dvc_lock, lineage
from leanresnet.analysis.champion import MEASURED, card
from leanresnet.analysis.charts import overview, trade_off
from leanresnet.analysis.comparison import compare
from leanresnet.analysis.disagreement import Disagreement
from leanresnet.analysis.html_report import write_page
from leanresnet.analysis.runs import RunRecord
from leanresnet.analysis.tables import aligned, fitted
from leanresnet.data.preview import samples
from leanresnet.data.splits import Split
from leanresnet.errors import redacted, warn
from leanresnet.evaluation import figures as pictures
from leanresnet.evaluation.predictions import Predictions
from leanresnet.models import checkpoint
from leanresnet.serving import inference
from leanresnet.text import abbreviated, drawn, markdown, plain
from pipeline.predict import predict

NAMES = {
    "terminal": "\x1b[31mred\x1b]0;title\x07",
    "lines": "one\ntwo\rthree\u2028four",
    "direction": "\u202etxt.exe",
    "no character": "\udcff",
    "cells": "a|b\\|c",
    "formula": r"$\foo$",
    "half a formula": r"a$b\$",
    "hidden": "_hidden",
    "html": "<img src=x onerror=alert(1)>",
    "link": "![x](https://example.org/x.png)",
    "format": "{0} %s %(x)s",
}
EACH = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
# Pictures take their time, so what is drawn is told all at once; its test below goes through each.
DRAWN = pytest.mark.parametrize("name", ["$\\foo$\x1b\n<img|", "_$"])


def named(name: str, accuracy: float = 0.5, parameters: float = 1.0) -> RunRecord:
    """A run in which all that somebody may choose is this."""
    tags = {**dict.fromkeys(lineage.TRAINING_TAGS, name), "dvc.experiment": name, "mlflow.user": name}
    metrics = {
        "val/best_accuracy": accuracy,
        "val/evaluated_accuracy": accuracy,
        "test/accuracy": 0.5,
        "model/parameters": parameters,
        "model/macs": 1.0,
    }
    metrics |= {f"test/accuracy_of/{name}": 0.5, **dict.fromkeys(MEASURED, 1.0)}
    params = {"max_parameters": "5", "lr": f"{name}{accuracy}", name: f"{name}{accuracy}"}
    return RunRecord("0" * 32, name, "FINISHED", tags, params, metrics, lambda: [0.1, 0.2])


def is_shown(text: str) -> bool:
    """Whether a terminal shows all of it, and it can be written."""
    text.encode()
    return all(letter.isprintable() for line in text.split("\n") for letter in line)


def test_what_can_be_printed_stays_as_it_is() -> None:
    for name in ("depth-1", "Größe 3", "中", "narrow\u202fspace", "C:\\x"):
        assert plain(name) == name
    assert markdown("lr-0.1_a, (2, 1) +1.50%") == "lr-0.1_a, (2, 1) +1.50%"


def test_a_character_that_cannot_is_written_out() -> None:
    assert plain("a\x1b[0mb\nc\u202e\udcff") == r"a\x1b[0mb\nc\u202e\udcff"


def test_markdown_is_taken_for_what_it_says() -> None:
    assert markdown("a|b") == r"a\|b"
    assert markdown("_a_ <b> [c](d) `e` *f* $g$ \\|") == r"\_a\_ \<b\> \[c\](d) \`e\` \*f\* \$g\$ \\\|"
    assert markdown("https://x www.y a@z") == r"https\://x www\.y a\@z"


@EACH
def test_matplotlib_draws_the_letters(name: str) -> None:
    text = Figure().text(0, 0, drawn(name))
    shown, is_formula = text._preprocess_math(text.get_text())
    assert (shown, is_formula) == (plain(name), False)


def test_letters_that_the_font_lacks_are_drawn_apart() -> None:
    """matplotlib warns of each, and warnings are errors; two names of boxes could not be told apart."""
    assert (drawn("éclair"), drawn("猫"), drawn("犬$")) == ("éclair", r"\u732b", r"\u72ac\$")
    figure = Figure()
    figure.text(0, 0, drawn("猫犬"))
    figure.savefig(io.BytesIO(), format="png")


def test_a_path_in_an_error_keeps_its_blanks_and_an_address_its_colon() -> None:
    assert redacted("a  b.png: not an image\n  of any kind\n") == "a  b.png: not an image of any kind"
    assert redacted("postgresql://ann:pw@host/x?password=y: away") == "postgresql://***@host/x?***: away"
    assert redacted("(http://host/a?b=c:d)") == "(http://host/a?***)"


@EACH
def test_an_error_and_a_warning_are_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    warn(name)
    for text in (redacted(name), capsys.readouterr().err.removesuffix("\n")):
        assert is_shown(text)
        assert "\n" not in text


@EACH
def test_a_comparison_keeps_its_cells(name: str) -> None:
    found = compare([named(name, 0.5), named(name, 0.6)])
    lines = found.markdown().replace("\\\\", "").replace("\\|", "").splitlines()
    assert (len(lines), len({line.count("|") for line in lines})) == (4, 1)
    assert is_shown(found.markdown())


@DRAWN
def test_a_comparison_is_drawn(name: str, tmp_path: Path) -> None:
    found = compare([named(name, 0.5), named(name, 0.6)])
    found.write(tmp_path / "runs")
    legend = overview(found.groups).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [drawn(f"{name} ({name})")] * 2


@DRAWN
def test_a_page_shows_it_as_text(name: str, tmp_path: Path) -> None:
    runs = [named(name, 0.5 + size / 10, size) for size in (1, 2, 3)]
    differ = Disagreement(runs[0], runs[1], [name, "b"], ([name, "b"], ["b", name]))
    write_page(compare(runs), differ, None, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert is_shown(page)
    assert "<img" not in page
    assert page.count("<svg") == 3


@EACH
def test_a_model_card_and_a_lineage_keep_their_lines(name: str, tmp_path: Path) -> None:
    run = named(name)
    text = lineage.describe(run, tmp_path)
    shown = card(run, text)
    assert is_shown(text)
    assert is_shown(shown)
    rows = [line for line in shown.replace("\\\\", "").replace("\\|", "").splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {3}
    plain_card = card(named("name"), lineage.describe(named("name"), tmp_path))
    assert len(shown.splitlines()) == len(plain_card.splitlines())


def test_commands_are_quoted(tmp_path: Path) -> None:
    assert lineage.describe(named("x; rm -rf ~"), tmp_path).endswith("\n    dvc repro 'x; rm -rf ~'")


def test_pictures_of_a_data_set_show_its_classes() -> None:
    name, split = NAMES["formula"], synthetic_split()
    odd = Split(split.images, split.labels, (name, *split.classes[1:]), split.dataset)
    wrong = Predictions(torch.eye(10)[(odd.labels + 1) % 10], odd.labels)
    figures = [samples(odd), pictures.confusion_matrix(name, wrong.confusion(), odd.classes)]
    for figure in (*figures, pictures.mistakes(name, odd, wrong, 1)):
        figure.savefig(io.BytesIO(), dpi=10)
        shown = [text.get_text() for axes in figure.axes for text in (*axes.texts, *axes.get_xticklabels())]
        assert any(drawn(name) in text for text in shown), shown
        assert figure.get_suptitle() in ("", drawn(name))


def test_the_front_names_its_runs() -> None:
    name = NAMES["formula"]
    (axes,) = trade_off([[named(name, 0.5 + size / 10, size)] for size in (1, 2, 3)], "parameters").axes
    assert {text.get_text() for text in axes.texts} == {drawn(name)}


@EACH
def test_predict_has_a_line_for_each_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "load_model", lambda *_: None)
    monkeypatch.setattr(inference, "find_images", list)
    monkeypatch.setattr(inference, "classify", lambda _, paths: [(path, {name: 0.5}) for path in paths])
    said = CliRunner().invoke(predict, [f"{name}.png", "other.png"], catch_exceptions=False).output.removesuffix("\n")
    assert is_shown(said)
    assert len(said.split("\n")) == 2
    assert said == "\n".join(line.rstrip() for line in said.split("\n"))
    as_json = CliRunner().invoke(predict, [f"{name}.png", "--format", "json"], catch_exceptions=False).output
    assert json.loads(as_json) == [{"file": click.format_filename(Path(f"{name}.png")), "classes": {name: 0.5}}]


@EACH
def test_stages_and_params_of_dvc_are_lines(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvc_lock, "read_lock", lambda _: {name: None})
    stale = json.dumps({name: [{"changed deps": {name: {name: "modified"}}}]})
    monkeypatch.setattr(check, "dvc", lambda *_, **__: SimpleNamespace(returncode=0, stdout=stale))
    check._echo_stale(tmp_path)
    said = capsys.readouterr().out.removesuffix("\n")
    assert is_shown(said)
    assert len(said.split("\n")) == 3


TABLE = [["run", "million MACs", "distill.teacher"], ["a", "8.6", "none"], ["longer", "23.9", "teacher"]]


def test_wide_letters_take_two_columns_of_a_terminal() -> None:
    lines = aligned([["run", "accuracy", "x"], ["名前", "9", "y"], ["name", "10", "z"]], {1})
    assert lines.splitlines() == ["run   accuracy  x", "名前         9  y", "name        10  z"]
    assert fitted([["run", "accuracy"], ["名前", "9"]], {1}, 14).splitlines()[0] == "run   accuracy"
    assert "\n\n" in fitted([["run", "a", "accuracy"], ["名前", "9", "1"]], {1}, 14)


def test_a_long_name_lacks_its_middle_in_a_picture() -> None:
    assert abbreviated("12345678901234567890") == "12345678901234567890"
    assert abbreviated("123456789012345678901") == "1234567890…345678901"
    names = (f"{60 * 'a'} first", f"{60 * 'a'} second")
    split = Split(random_images(2), torch.arange(2), names, "folder")
    titles = [text.get_text() for text in samples(split).axes[0].texts]
    assert titles == ["aaaaaaaaaa…aaa first", "aaaaaaaaaa…aa second"]


def test_a_wide_terminal_shows_all_columns_side_by_side() -> None:
    assert fitted(TABLE, {1}, 80).splitlines() == [
        "        million  distill.",
        "run        MACs  teacher",
        "a           8.6  none",
        "longer     23.9  teacher",
    ]
    assert max(map(len, fitted(TABLE, {1}, 25).splitlines())) == 25


def test_columns_that_do_not_fit_a_terminal_are_below_the_others() -> None:
    for width in (24, 15, 1):
        assert fitted(TABLE, {1}, width).splitlines() == [
            "        million",
            "run        MACs",
            "a           8.6",
            "longer     23.9",
            "",
            "        distill.",
            "run     teacher",
            "a       none",
            "longer  teacher",
        ]
