"""Names where they leave the library: of runs, classes and files, which others may have chosen."""

import re
import unicodedata

# What means something inside a line of Markdown; an underscore inside a word does not.
MARKDOWN = re.compile(r"[\\`*<>\[\]|&~$:#!@]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.", re.IGNORECASE)


def plain(name: object) -> str:
    """One line in which a terminal finds no command: another character is written as Python does, as in `\\x1b`."""
    return "".join(letter if _is_printed(letter) else repr(letter)[1:-1] for letter in str(name))


def markdown(name: object) -> str:
    """Also read as what it says in Markdown: no cell of a table, link, picture, formula or HTML."""
    return MARKDOWN.sub(r"\\\g<0>", plain(name))


def drawn(name: object) -> str:
    """Also drawn by matplotlib as what it says, and no formula."""
    return plain(name).replace("$", r"\$")


def _is_printed(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"
