"""YAML: every text has the value that DVC reads, and so records in dvc.lock."""

import math

import pytest
from dvc.exceptions import DvcException
from dvc.utils.serialize import parse_yaml

from leanresnet.config.documents import read_yaml, write_yaml

# What YAML 1.1, PyYAML's, and YAML 1.2, DVC's, read differently, and what is near to it.
SCALARS = [
    *("010", "0o10", "0x10", "0b11", "08", "-010", "00", "0_0", "1_000", "1__0", "1_", "_1", "+1", "-0"),
    *("yes", "Yes", "no", "on", "off", "y", "n", "true", "True", "TRUE", "~", "null", "Null", ""),
    *("1:30", "190:20:30", "190:20:30.15", "2024-01-01", "2024-1-1", "2001-12-14t21:59:43.10-05:00"),
    *("1e-5", "1e-05", "5e-05", "1E-5", "1.0e-05", "1.e5", "5e6", "1e+05", "12e03", ".5", "+.5", "0.", "1e", "1e400"),
    *(".inf", "-.inf", "inf", "685_230.15", "1.0_0", "'010'", '"yes"', "'1e-5'", "!!float 3", "!!int '010'", "!!str 1"),
    *("!!bool yes", "!!set {a}", "!!binary aGk=", "[1, 1e-3, on]", "{a: 010}", "|\n  yes\n", "&x 010"),
]


@pytest.mark.parametrize("text", SCALARS)
def test_a_value_is_the_one_that_dvc_reads(text: str) -> None:
    ours, theirs = read_yaml(f"key: {text}"), parse_yaml(f"key: {text}", "params.yaml")
    assert (ours, repr(ours)) == (theirs, repr(theirs))


@pytest.mark.parametrize(
    "text",
    [
        "a: &x {seed: 010, lr: 1e-3}\nb:\n  <<: *x\n  seed: 1\n",
        "a: &x {b: 1}\nc: &y {b: 2, d: 3}\ne:\n  <<: [*x, *y]\n",
        "%YAML 1.1\n---\nseed: 010\nflag: yes\n",
        "# nothing but a comment\n",
        "\ufeffseed: 1\r\n",
    ],
)
def test_a_document_is_the_one_that_dvc_reads(text: str) -> None:
    assert (read_yaml(text) or {}) == parse_yaml(text, "params.yaml")


def test_numbers_are_those_of_yaml_1_2() -> None:
    values = read_yaml("[010, 0o10, yes, 1:30, 1e-05, 5e6, 1_000, .inf]")
    assert values == [10, 8, "yes", "1:30", 1e-05, 5e6, 1000, math.inf]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", 'line 3, column 1: not valid YAML (found duplicate key "a"'),
        ("a: {b: 1, b: 1}\n", 'line 1, column 11: not valid YAML (found duplicate key "b"'),
        ("a: [1, 2\n", "line 2, column 1: not valid YAML"),
        ("a: *x\n", "line 1, column 4: not valid YAML (found undefined alias"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: not valid YAML (but found another document"),
        ("a: !!python/object/apply:os.system [exit]\n", "line 1, column 4: not valid YAML (could not determine"),
        ("a: 2024-13-45\n", "not valid YAML (month must be in 1..12"),
        (f"a: {'9' * 5000}\n", "not valid YAML ("),
        ("a: !!float _\n", "not valid YAML ("),
        ("a: !!bool 2\n", "not valid YAML ("),
        ("%YAML 9.9\n---\na: 1\n", "line 1, column 1: not valid YAML (found incompatible"),
        (f"a: {'[' * 1000}\n", "not valid YAML (nested too deeply)"),
        ("a: \x00\n", "not valid YAML ("),
    ],
)
def test_what_is_not_yaml_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="not valid YAML") as caught:
        read_yaml(text)
    assert str(caught.value).startswith(said)
    assert len(str(caught.value).splitlines()) == 1


def test_a_duplicate_key_is_refused_by_dvc_too() -> None:
    with pytest.raises(DvcException):
        parse_yaml("a: 1\na: 2\n", "params.yaml")


def test_what_is_written_is_read_as_the_same_value() -> None:
    values = {"lr": 1e-05, "text": "1e-05", "yes": "yes", "octal": "010", "none": None, "list": [1, 2.5, True, "on"]}
    for read in (read_yaml, lambda text: parse_yaml(text, "params.yaml")):
        assert read(write_yaml(values)) == values
    assert write_yaml({"b": None, "a": [1]}) == "b: null\na:\n- 1\n"
