"""The entry of the `leanresnet` program: the commands that belong to this library, whatever else is named `pipeline`.

That is a usual name: a workspace may have a folder of it, and so may one on PYTHONPATH, which comes before what is
installed.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import NoReturn

from leanresnet.compute.threads import share_cores

NAME = "pipeline"


def main() -> NoReturn:
    share_cores()
    package = Path(__file__).resolve().parent
    # A wheel has the commands, as all released files, inside this package; in a checkout they lie beside src/.
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


if __name__ == "__main__":
    main()
