"""YAML, read and written by the parser that DVC uses, so that a run has the same values that dvc.lock records.

YAML 1.1 and 1.2 read the same text differently: `010` is 8 or 10, `yes` is true or a text, `1e-05` is a text or a
number. DVC reads YAML 1.2, unless the file says otherwise (https://github.com/treeverse/dvc, dvc/utils/serialize).
"""

import io

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def read_yaml(text: str) -> object:
    """Parse a document to plain dicts, lists and scalars; an empty one is None.

    Raises:
        ValueError: if the text is not YAML; the message is one line, with the position if it is known.
    """
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "syntax"
        raise ValueError(f"{where}not valid YAML ({' '.join(str(problem).split())})") from error
    except RecursionError as error:
        raise ValueError("not valid YAML (nested too deeply)") from error
    # These are raised for a scalar that does not match its tag or form, such as an invalid date, or too many digits.
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"not valid YAML ({' '.join(str(error).split())})") from error


def write_yaml(value: object) -> str:
    """Return text from which `read_yaml` and DVC read the same value, with one value per line and keys in order."""
    yaml, stream = YAML(typ="safe"), io.StringIO()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(value, stream)
    return stream.getvalue()
