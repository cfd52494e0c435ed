"""What a wheel holds beside the library: the commands, and the files that `leanresnet init` copies."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

RELEASE = (
    ".dvc/config",
    ".dvc/plots.html",
    ".dvcignore",
    ".gitignore",
    "dvc.yaml",
    "experiments",
    "pipeline",
    "presets",
)


class Release(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Puts them inside the package, laid out as in a checkout; an editable install uses the checkout's own."""
        if version != "editable":
            build_data["force_include"].update({part: f"leanresnet/_release/{part}" for part in RELEASE})
