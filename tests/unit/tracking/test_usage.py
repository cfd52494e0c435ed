"""The use of the machine."""

import pytest
import torch

from leanresnet.tracking.usage import usage


def test_the_machine_is_described_under_the_names_of_mlflows_page() -> None:
    used = usage(torch.device("cpu"))
    assert set(used) == {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
    }
    assert 0 < used["system/system_memory_usage_percentage"] <= 100


def test_a_gpu_has_its_number_in_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30_000_000, 40_000_000))
    used = usage(torch.device("cuda:1"))
    assert used["system/gpu_1_memory_usage_megabytes"] == 10.0
    assert used["system/gpu_1_memory_usage_percentage"] == 25.0
