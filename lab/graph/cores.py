"""How many cores this machine has for the lab, and how many stages that makes at once."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def default_jobs() -> int:
    """Stages at once where nobody says: one a physical core."""
    return max(1, min(psutil.cpu_count(logical=False) or 1, cores()))


def cores() -> int:
    """Cores this process may use, containers' quotas included."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(available, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or `max`
        return available
