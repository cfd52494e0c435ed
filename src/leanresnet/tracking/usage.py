"""How much of the machine is in use, under the names of MLflow's system metrics, which have a page of their own."""

import psutil
import torch

MEGABYTE = 1e6


def usage(device: torch.device) -> dict[str, float]:
    """Return the load of the machine's processors since the last call, and the memory that is used now.

    The load is that of all processes, in percent of all processors; the first call has no earlier one and returns 0.
    The memory is that of the machine and of a CUDA device, in megabytes and in percent.
    """
    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = f"gpu_{device.index or 0}_memory_usage"
        values |= {f"{name}_megabytes": (total - free) / MEGABYTE, f"{name}_percentage": 100 * (1 - free / total)}
    return {f"system/{name}": value for name, value in values.items()}
