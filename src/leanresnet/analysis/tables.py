"""Tables with aligned columns, for a terminal."""

import re
import unicodedata
from collections.abc import Container, Sequence

from leanresnet.text import plain

# The space between two columns.
GAP = "  "


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
