"""The project's modules that a module imports, directly or through others, read from the source."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"leanresnet": ROOT / "src" / "leanresnet", "pipeline": ROOT / "pipeline"}


def module_file(name: str) -> Path | None:
    """The file of a module of this project, or None for a package or another project's module."""
    package, _, rest = name.partition(".")
    if package not in PACKAGES or not rest:
        return None
    file = PACKAGES[package].joinpath(*rest.split(".")).with_suffix(".py")
    return file if file.exists() else None


def direct_imports(file: Path) -> set[str]:
    """Dotted names of everything that `file` imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def closure(name: str) -> set[Path]:
    """Files of this project that importing and running `name` can reach, itself included."""
    start = module_file(name)
    assert start, name
    reached: set[Path] = set()
    waiting = [start]
    while waiting:
        file = waiting.pop()
        if file not in reached:
            reached.add(file)
            waiting += [found for imported in direct_imports(file) if (found := module_file(imported))]
    return reached
