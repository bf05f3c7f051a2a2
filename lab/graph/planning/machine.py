"""What this machine computes in a second, and how much slower it gets when several processes share it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.graph.cores import cores

_SECONDS = 0.3  # of one measurement; there are two or three
_VALID = 3600.0  # seconds that a measurement holds: what a machine reaches depends on what else it does
_WIDTH, _ROWS, _TOKENS, _HEADS = 128, 16, 128, 4  # of the block: a layer of the default language model
_SIDE = 512  # of the matrices of which several are multiplied at once


@dataclass(frozen=True)
class Machine:
    """A machine as a short probe found it.

    Attributes:
        rate: operations a second in forward and backward passes of a transformer block, with one thread.
        contention: processes at once -> how many times longer each takes than alone.
    """

    rate: float
    contention: Mapping[int, float]

    def slower(self, jobs: int) -> float:
        """How many times longer each of `jobs` processes takes than alone; those beyond the cores wait."""
        known = [count for count in self.contention if count <= jobs]
        if not known:
            return 1.0
        return self.contention[max(known)] * (jobs / max(known) if jobs > cores() else 1.0)


def this_machine(file: Path) -> Machine:
    """Measures this machine, or remembers.

    Args:
        file: holds what was measured, by machine.
    """
    name = _name()
    try:
        known: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    found = known.get(name)
    if found is not None and 0 <= time.time() - found["at"] < _VALID:
        return Machine(found["rate"], {int(jobs): slower for jobs, slower in found["contention"].items()})
    machine = _measure()
    known[name] = {
        "at": int(time.time()),
        "rate": round(machine.rate),
        "contention": {str(jobs): round(slower, 2) for jobs, slower in machine.contention.items()},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(known, indent=1) + "\n")
    os.replace(draft, file)
    return machine


def _name() -> str:
    """What tells machines apart that share a folder, and sizes of one container."""
    return f"{platform.node()}, {platform.machine()}, {cores()} cores"


def _measure() -> Machine:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        operations, step = _block()
        rate = operations / _pace(step, time.thread_time)  # whatever else the machine does just now
        alone = _pace(_product(), time.perf_counter)
        counts = sorted({2, cores()} - {1})
        return Machine(rate, {count: min(max(1.0, _together(count) / alone), count) for count in counts})
    finally:
        torch.set_num_threads(threads)


def _pace(step: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of one step, by a clock of one's choice."""
    step()
    begin, start, steps = time.perf_counter(), clock(), 0
    while time.perf_counter() - begin < _SECONDS:
        step()
        steps += 1
    return (clock() - start) / steps


def _together(count: int) -> float:
    """Seconds of one product when several threads multiply; the products hold no lock of Python's."""
    with ThreadPoolExecutor(count) as pool:
        paces = list(pool.map(lambda _: _pace(_product(), time.perf_counter), range(count)))
    return sum(paces) / count


def _product() -> Callable[[], None]:
    import torch

    one, other = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    result = torch.empty(_SIDE, _SIDE)

    def step() -> None:
        torch.mm(one, other, out=result)

    return step


def _block() -> tuple[int, Callable[[], None]]:
    """Operations of a transformer block's way forth and back, and a function that does them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    layer = torch.nn.TransformerEncoderLayer(
        _WIDTH, _HEADS, 3 * _WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
    )
    tokens = torch.randn(_ROWS, _TOKENS, _WIDTH)

    def step() -> None:
        layer(tokens).square().mean().backward()
        layer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops()), step
