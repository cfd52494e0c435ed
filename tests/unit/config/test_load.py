"""A params file, read: what is said of its first mistake."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import parse_yaml
from helpers import put
from imports import ROOT

from leanresnet.config.load import load_params
from leanresnet.config.schema import flatten
from leanresnet.errors import ConfigError, StorageError

DEFAULT = (ROOT / "params.yaml").read_text()


def save(folder: Path, params: dict[str, Any]) -> Path:
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder / "params.yaml"


def test_an_unknown_key_is_named_before_the_missing_one_beside_it(tmp_path: Path) -> None:
    params = yaml.safe_load(DEFAULT)
    params["distill"]["temprature"] = params["distill"].pop("temperature")
    with pytest.raises(ConfigError, match=r"distill.temprature = 4.0: unknown key \(did you mean temperature\?\)"):
        load_params(save(tmp_path, params))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.baseline.optimizer.weight_decay", "1e-05", 1e-05),  # as DVC writes what --set-param gives
        ("train.baseline.optimizer.weight_decay", "1e-5", 1e-05),
        ("train.baseline.optimizer.lr", "5e-05", 5e-05),
        ("train.baseline.optimizer.lr", "1E-3", 0.001),
        ("train.baseline.seed", "010", 10),
        ("train.baseline.seed", "0o10", 8),
        ("train.baseline.max_parameters", "5_000_000", 5_000_000),
    ],
)
def test_a_number_is_the_one_that_dvc_records(tmp_path: Path, key: str, text: str, value: float) -> None:
    assert flatten(load_params(with_text(tmp_path, key, text)))[key] == value


def test_what_dvc_writes_for_set_param_is_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(DEFAULT)
    section = "train.baseline.optimizer"
    overrides = {"lr": "1e-3", "weight_decay": "1e-5", "rho": "0", "betas": "[5e-1,0.99]", "nesterov": "true"}
    apply_overrides(str(path), [f"{section}.{key}={value}" for key, value in overrides.items()])
    assert "weight_decay: 1e-05" in path.read_text()
    read = load_params(path).train.baseline.optimizer.model_dump(mode="json")
    assert read == parse_yaml(path.read_text(), str(path))["train"]["baseline"]["optimizer"]
    assert (read["lr"], read["weight_decay"], read["betas"]) == (0.001, 1e-05, [0.5, 0.99])


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("train.baseline.optimizer.nesterov", "yes", "'yes': expected: true or false"),
        ("train.baseline.compile", "off", "'off': expected: true or false or 'reduce-overhead'"),
        ("train.baseline.compile", "1", "1: expected: true or false or 'reduce-overhead'"),
        (
            "train.baseline.compile",
            "reduce_overhead",
            "'reduce_overhead': expected: true or false or 'reduce-overhead' (did you mean reduce-overhead?)",
        ),
        ("train.baseline.epochs", "1:30", "'1:30': expected: a valid integer"),
        ("train.baseline.max_parameters", "5e6", "5000000.0: expected: a valid integer, 5000000"),
        ("train.baseline.optimizer.lr", "'1e-3'", "'1e-3': expected: a valid number"),
        ("train.baseline.optimizer.lr", ".inf", "inf: expected: a finite number"),
        ("train.baseline.optimizer.lr", "1e400", "inf: expected: a finite number"),
        ("train.baseline.optimizer.lr", ".nan", "nan: expected: a finite number"),
        ("train.baseline.seed", "2024-01-01", "datetime.date(2024, 1, 1): expected: a valid integer"),
    ],
)
def test_what_dvc_reads_as_something_else_is_refused(tmp_path: Path, key: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_params(with_text(tmp_path, key, text))
    assert str(caught.value) == f"{tmp_path / 'params.yaml'}: {key} = {said}"


def with_text(folder: Path, key: str, text: str) -> Path:
    """The default params with `text`, as it stands there, for the value of `key`."""
    written = yaml.safe_dump(put(yaml.safe_load(DEFAULT), {key: "PLACE"}))
    (folder / "params.yaml").write_text(written.replace("PLACE", text))
    return folder / "params.yaml"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "params.yaml: empty, expected: a mapping"),
        (b"- download\n", "['download'] at the top level"),
        (b"text", "'text' at the top level"),
        (b"download: [1, 2\n", "line 2, column 1: not valid YAML"),
        (b"a: 1\n\tb: 2\n", "line 2, column 1: not valid YAML"),
        (b"a: 1\na: 2\n", 'line 2, column 1: not valid YAML (found duplicate key "a"'),
        (b"a: \x00\n", "not valid YAML"),
        (b"seed: 2024-13-45\n", "not valid YAML (month must be in 1..12)"),
        (b"seed: " + b"9" * 5000 + b"\n", "not valid YAML"),
        (b"seed: !!python/object/apply:os.system [exit]\n", "not valid YAML"),
        (b"name: \xff\n", "not UTF-8 text (byte 6)"),
        (b'"two\\nlines": 1\n', "two lines = 1: unknown key"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_params(path)
    assert str(caught.value).startswith(f"{path}:")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_value_that_aliases_multiply_is_cut_before_it_is_written_out(tmp_path: Path) -> None:
    lists = [f"- &{name} [{', '.join(8 * [f'*{before}'])}]" for before, name in pairwise("abcdefghij")]
    (tmp_path / "params.yaml").write_text("\n".join(["- &a [x]", *lists]))
    with pytest.raises(ConfigError, match="at the top level") as caught:
        load_params(tmp_path / "params.yaml")
    assert len(str(caught.value)) < 400


def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere.yaml: cannot be read \(No such file or directory\)"):
        load_params(tmp_path / "nowhere.yaml")
    with pytest.raises(StorageError, match=r"cannot be read \(Is a directory\)"):
        load_params(tmp_path)
