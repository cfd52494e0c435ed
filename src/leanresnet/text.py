"""Text for people: tables with aligned columns, and names of runs, classes and files, which others may have chosen.

Names are escaped before they are shown.
"""

import re
import unicodedata
from collections.abc import Container, Sequence
from functools import cache

# The space between two columns.
GAP = "  "
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


def abbreviated(name: str, most: int = 20) -> str:
    """Return a name of at most `most` characters; a longer one lacks its middle."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 + most // 2 - most :]}"


@cache
def _glyphs() -> Container[int]:
    from matplotlib.font_manager import findfont, get_font

    return get_font(findfont("DejaVu Sans")).get_charmap()


def aligned(rows: Sequence[Sequence[object]], numbers: Container[int]) -> str:
    """Return rows of cells as lines with aligned columns; the columns with these indices are aligned to the right."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(_columns, column)) for column in zip(*cells, strict=True)]

    def padded(place: int, cell: str) -> str:
        space = " " * (widths[place] - _columns(cell))
        return space + cell if place in numbers else cell + space

    return "\n".join(GAP.join(padded(place, cell) for place, cell in enumerate(row)).rstrip() for row in cells)


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes; a wide letter, as in East Asian languages, takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def fitted(rows: Sequence[Sequence[object]], numbers: Container[int], width: int) -> str:
    """Return `aligned` rows for a terminal of `width` columns.

    The names of columns, which are the first row, are broken after spaces, dots and underscores. Columns that find no
    room follow below the others, each time with the first column before them.
    """
    names = [[part.rstrip() for part in re.split(r"(?<=[ ._])", plain(name))] for name in rows[0]]
    cells = [[plain(row[place]) for row in rows[1:]] for place in range(len(names))]
    parts, used = [[0]], 0
    for place in range(1, len(names)):
        needed = len(GAP) + max(map(_columns, names[place] + cells[place]))
        if len(parts[-1]) > 1 and used + needed > width:
            parts.append([0])
        if len(parts[-1]) == 1:
            used = max(map(_columns, names[0] + cells[0]))
        parts[-1].append(place)
        used += needed
    return "\n\n".join(_part(names, cells, places, numbers) for places in parts)


def _part(names: list[list[str]], cells: list[list[str]], places: list[int], numbers: Container[int]) -> str:
    height = max(len(names[place]) for place in places)
    columns = [[""] * (height - len(names[place])) + names[place] + cells[place] for place in places]
    return aligned(list(zip(*columns, strict=True)), [at for at, place in enumerate(places) if place in numbers])


def _is_printed(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"
