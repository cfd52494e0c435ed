"""The files of this checkout that a workspace starts from."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def presets() -> dict[str, Path]:
    """Params files by preset name; params.yaml itself is `default`."""
    found = {path.stem: path for path in sorted((CHECKOUT / "presets").glob("*.yaml"))}
    return {"default": CHECKOUT / "params.yaml", **found}


def preset_path(name: str) -> Path:
    """Raises ConfigError, with the nearest name, for an unknown preset."""
    import difflib

    from leanresnet.errors import ConfigError

    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"preset = {name!r}: unknown{hint}, accepted: {', '.join(known)}")
    return known[name]
