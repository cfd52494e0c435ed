"""The entry point of the `leanresnet` program, which loads the commands of the package `pipeline` by their path.

They are not imported by name, because `pipeline` is a common name: the workspace, or a folder on PYTHONPATH, may have
another package of this name, which Python would import instead.
"""

import gc
import importlib
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from leanresnet.compute.threads import share_cores

NAME = "pipeline"


def main() -> NoReturn:
    """Load the commands and run the program; it ends the process."""
    # SIGINT may be ignored, as in the background of a shell.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    share_cores()
    # Imports create half a million objects that stay. With Python's default, a stage looks through them for garbage so
    # often that it takes a tenth of the time of a short one.
    gc.set_threshold(50_000, 50, 100)
    package = Path(__file__).resolve().parent
    # A wheel has the commands and the other files of a release inside this package; a checkout has them beside src/.
    places = (package / "_release" / NAME, package.parent.with_name(NAME))
    folder = next(place for place in places if (place / "cli.py").exists())
    spec = importlib.util.spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    importlib.import_module(f"{NAME}.cli").main()
    raise AssertionError("the program ends its process itself")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT: end the process at once during an import, and raise KeyboardInterrupt otherwise.

    Within an import, other packages swallow the exception, or show it with a traceback of a half-imported module.
    """
    place = frame
    while place is not None:
        if place.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(128 + number)
        place = place.f_back
    signal.default_int_handler(number, frame)


if __name__ == "__main__":
    main()
