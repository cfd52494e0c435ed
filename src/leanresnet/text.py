"""Names of runs, classes and files as text. Others may have chosen them, so they are escaped before they are shown."""

import re
import unicodedata
from collections.abc import Container
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


def abbreviated(name: str, most: int = 20) -> str:
    """Return a name of at most `most` characters; a longer one lacks its middle."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 + most // 2 - most :]}"


@cache
def _glyphs() -> Container[int]:
    from matplotlib.font_manager import findfont, get_font

    return get_font(findfont("DejaVu Sans")).get_charmap()


def _is_printed(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"
