"""How busy the machine is while a stage runs, under the names that MLflow's page of system metrics shows."""

from __future__ import annotations

import sys
from contextlib import suppress

import psutil

_MEBI = 2**20


class Measurements:
    """Takes a sample of processors, memory and, where torch uses one, GPU: a fraction of a millisecond."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # what follows counts from here
        psutil.cpu_percent()

    def sample(self) -> dict[str, float]:
        """Figures since the last sample."""
        memory = psutil.virtual_memory()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": (memory.total - memory.available) / _MEBI,
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_percentage": self._process.cpu_percent(),  # of one thread: two busy ones make 200
            "process_memory_megabytes": self._process.memory_info().rss / _MEBI,
        }
        return {f"system/{name}": round(value, 1) for name, value in (found | _gpus()).items()}


def _gpus() -> dict[str, float]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    found: dict[str, float] = {}
    for index in range(torch.cuda.device_count()):
        if not torch.cuda.memory_reserved(index):
            continue  # not ours, and asking would claim a part of it
        with suppress(Exception):  # drivers and their bindings differ; a figure less is no matter
            free, total = torch.cuda.mem_get_info(index)
            found[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / _MEBI
            found[f"gpu_{index}_memory_usage_percentage"] = 100 * (total - free) / total
            found[f"gpu_{index}_utilization_percentage"] = torch.cuda.utilization(index)
    return found
