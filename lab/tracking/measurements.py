"""How busy the machine is while a stage runs, under the names that MLflow's page of system metrics shows."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

import psutil

_MEBI = 2**20


class Measurements:
    """Takes a sample of processors, memory and, where torch uses one, GPU: a fraction of a millisecond."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._seconds()

    def sample(self) -> dict[str, float]:
        """Figures since the last sample."""
        before, self._before = self._before, self._seconds()
        busy, whole, own, clock = (new - old for new, old in zip(self._before, before, strict=True))
        memory = psutil.virtual_memory()
        found = {
            "cpu_utilization_percentage": 100 * busy / max(whole, 1e-3),
            "system_memory_usage_megabytes": (memory.total - memory.available) / _MEBI,
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_percentage": 100 * own / max(clock, 1e-3),  # of one thread: two busy ones make 200
            "process_memory_megabytes": self._process.memory_info().rss / _MEBI,
        }
        return {f"system/{name}": round(value, 1) for name, value in (found | _gpus()).items()}

    def _seconds(self) -> tuple[float, float, float, float]:
        """Of all processors: busy, and in all; of this process: busy, and on the clock."""
        times = psutil.cpu_times()
        whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # counted twice
        own = self._process.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return whole - idle, whole, own.user + own.system, time.monotonic()


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
