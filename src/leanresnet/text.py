"""The escaping of names of runs, classes and files, which other people may have chosen, before they are shown."""

import re
import unicodedata
from collections.abc import Container, Sequence
from functools import cache

# Characters with a meaning inside a line of Markdown; an underscore inside a word has none.
MARKDOWN = re.compile(r"[\\`*<>\[\]|&~$:#!@]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.", re.IGNORECASE)


def plain(name: object) -> str:
    """Return one line without control characters for a terminal: they are escaped as in Python, such as `\\x1b`."""
    return "".join(letter if _is_printed(letter) else repr(letter)[1:-1] for letter in str(name))


def markdown(name: object) -> str:
    """Escape a name for Markdown, so that it makes no cell of a table, link, picture, formula or HTML; also `plain`."""
    return MARKDOWN.sub(r"\\\g<0>", plain(name))


def drawn(name: object) -> str:
    """Escape a name for matplotlib: a `$`, which would begin a formula, and letters that its font lacks; also `plain`.

    matplotlib's own font has no Chinese, Japanese or Korean, and would draw the same box for each of their letters.
    """
    letters = (letter if ord(letter) in _glyphs() else ascii(letter)[1:-1] for letter in plain(name))
    return "".join(letters).replace("$", r"\$")


@cache
def _glyphs() -> Container[int]:
    from matplotlib.font_manager import findfont, get_font

    return get_font(findfont("DejaVu Sans")).get_charmap()


def aligned(rows: Sequence[Sequence[object]], numbers: Container[int]) -> str:
    """Return rows of cells as lines with aligned columns; the columns with these indices are aligned to the right."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    put = [str.rjust if place in numbers else str.ljust for place in range(len(widths))]
    lines = ("  ".join(pad(cell, width) for pad, cell, width in zip(put, row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _is_printed(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"
