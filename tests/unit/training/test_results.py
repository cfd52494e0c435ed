"""The files of a training."""

from pathlib import Path

import pytest

from leanresnet.training import results


def test_the_curves_have_the_name_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(results, "save_figure", lambda figure, _: titles.append(figure.get_suptitle()))
    row = {f"{split}/{name}": 0.5 for split in ("train", "val") for name in ("loss", "accuracy")}
    results.save_results([row], 1, results.Outputs(tmp_path, tmp_path / "student"))
    assert titles == ["student"]
