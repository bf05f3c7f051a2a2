"""What trials do in tests: no training, importable by the processes of workers."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from lab.search.worker import Objective
from lab.training.preemption import Paused

Report = Callable[[int, float], bool]


def rated(settings: dict[str, Any], report: Report, rungs: Collection[int] = ()) -> dict[str, float]:
    """Best at a rate of 1e-3 with a Q-Former of 16 queries."""
    rate = settings.get("stages.instruct.learning_rate.connector", 1e-3)
    value = 0.7 - 0.1 * abs(math.log10(rate) + 3)
    if settings.get("connector") == "q_former":
        value += 0.1 - abs(settings["connector.num_queries"] - 16) / 200
    for step in sorted(rungs) or (100, 200):
        if report(step, value * step / 200):
            raise Paused(step)
    return {"understanding/vqa": value, "generation/scene": 1 - value}


def noted(settings: dict[str, Any], report: Report, rungs: Collection[int] = ()) -> dict[str, float]:
    """The same, with a line in `log` for every start and every end, by process."""
    _note("start", settings)
    metrics = rated(settings, report, rungs)
    _note("end", settings)
    return metrics


def slow(settings: dict[str, Any], report: Report, rungs: Collection[int] = ()) -> dict[str, float]:
    """The same, taking its time."""
    _note("start", settings)
    time.sleep(0.3)
    _note("end", settings)
    return rated(settings, report, rungs)


def deadly(settings: dict[str, Any], report: Report, rungs: Collection[int] = ()) -> dict[str, float]:
    """Every process that tries it dies of it, where its number of queries is even."""
    if settings.get("connector.num_queries", 1) % 2 == 0:
        os.kill(os.getpid(), 9)
    return rated(settings, report, rungs)


def broken(settings: dict[str, Any], report: Report, rungs: Collection[int] = ()) -> dict[str, float]:
    """Nothing comes of it."""
    raise RuntimeError("the loss is not finite")


def _note(event: str, settings: dict[str, Any]) -> None:
    line = json.dumps({"event": event, "pid": os.getpid(), "settings": settings}, sort_keys=True)
    with Path("log").open("a") as file:
        file.write(f"{line}\n")


RATED, NOTED, SLOW = Objective(rated), Objective(noted), Objective(slow)
DEADLY, BROKEN = Objective(deadly), Objective(broken)
