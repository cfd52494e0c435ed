"""The benchmark of a shared CPU; nothing here is timed."""

import subprocess

import pytest

from bench import contention, report


def test_a_training_beside_others_is_compared_with_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "FIGURES", [])
    speeds = {0: iter((90.0, 120.0, 60.0)), contention.BUSY: iter((30.0, 30.0, 40.0))}
    monkeypatch.setattr(contention, "_measured", lambda preset, seconds, busy: next(speeds[busy]))
    contention.contention("demo", 1.0)
    found = {figure["name"]: figure["value"] for figure in report.FIGURES}
    assert found == {"contention/demo_alone": 90, "contention/demo_beside": 30, "contention/demo_ratio": 3}
    assert report.FIGURES[-1]["largest"] == 4


def test_busy_processes_end_with_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(contention.subprocess, "Popen", lambda *given: started.append(popen(*given)) or started[-1])

    def stopped() -> None:
        with contention._busy(2):
            assert [process.poll() for process in started] == [None, None]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [process.poll() for process in started] == [-9, -9]


def test_one_training_gives_its_speed() -> None:
    assert contention.images_a_second("demo", 0) > 0
