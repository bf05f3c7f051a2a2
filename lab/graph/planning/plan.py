"""A plan: every node of a graph with what it takes, and what follows for all of them together."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isinf
from typing import Any

from lab.graph.cores import cores
from lab.graph.planning.machine import Machine

_NO_WORK = ("done", "recordable")  # states in which nothing is left to compute


@dataclass(frozen=True)
class Estimate:
    """What one node takes.

    Attributes:
        seconds: of its process, alone on the machine.
        low, high: between which earlier runs, or the errors of the model, leave it.
        memory: MB at its peak.
        source: where this comes from, "3 earlier runs".
        runs: names of these, each with its folder's before it.
    """

    seconds: float
    low: float
    high: float
    memory: float
    source: str
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedNode:
    """One node of a plan.

    Attributes:
        name, stage: of the node.
        state, reason: as the runner finds it.
        needs: names of the nodes whose outputs it takes.
        estimate: what it takes, or took.
    """

    name: str
    stage: str
    state: str
    reason: str
    needs: tuple[str, ...]
    estimate: Estimate

    @property
    def left(self) -> bool:
        return self.state not in _NO_WORK


@dataclass(frozen=True)
class Plan:
    """What running a graph means.

    Attributes:
        name: of the ablation.
        nodes: in an order in which they may run.
        arms: how many paths through the graph, an arm and a seed each.
        nodes_alone, seconds_alone: of all arms if each ran by itself.
        machine: as the probe found it.
    """

    name: str
    nodes: Mapping[str, PlannedNode]
    arms: int
    nodes_alone: int
    seconds_alone: float
    machine: Machine

    @property
    def seconds_shared(self) -> float:
        """Of all distinct nodes."""
        return sum(node.estimate.seconds for node in self.nodes.values())

    @property
    def left(self) -> list[PlannedNode]:
        """The nodes that have something to compute."""
        return [node for node in self.nodes.values() if node.left]

    @property
    def seconds_left(self) -> float:
        """Of these, one after the other."""
        return sum(node.estimate.seconds for node in self.left)

    @cached_property
    def behind(self) -> dict[str, float]:
        """Node that is left -> seconds of the longest way from its start to the end of the graph."""
        after: dict[str, float] = {}
        for node in reversed(self.left):
            after[node.name] = after.get(node.name, 0.0) + node.estimate.seconds
            for name in node.needs:
                after[name] = max(after.get(name, 0.0), after[node.name])
        return {node.name: after[node.name] for node in self.left}

    @cached_property
    def critical_path(self) -> list[PlannedNode]:
        """The nodes that no number of jobs makes faster, in order."""
        path: list[PlannedNode] = []
        choice = [node for node in self.left if not any(self.nodes[name].left for name in node.needs)]
        while choice:
            path.append(max(choice, key=lambda node: self.behind[node.name]))
            choice = [node for node in self.left if path[-1].name in node.needs]
        return path

    @property
    def seconds_critical(self) -> float:
        return sum(node.estimate.seconds for node in self.critical_path)

    def wall(self, jobs: int) -> float:
        """Seconds until the end with several jobs at once, the ready node with the most behind it first.

        Nodes that run at the same time slow each other down as much as the probe found.
        """
        waiting = {node.name: {name for name in node.needs if self.nodes[name].left} for node in self.left}
        followers: dict[str, list[str]] = {}
        for name, needs in waiting.items():
            for need in needs:
                followers.setdefault(need, []).append(name)
        ready = [(-self.behind[name], name) for name, needs in waiting.items() if not needs]
        heapq.heapify(ready)
        running: dict[str, float] = {}  # seconds of work that are left
        now = 0.0
        while ready or running:
            while ready and len(running) < jobs:
                name = heapq.heappop(ready)[1]
                running[name] = self.nodes[name].estimate.seconds
            slower = self.machine.slower(len(running))
            done = min(running.values())
            now += done * slower
            running = {name: left - done for name, left in running.items()}
            for name in [name for name, left in running.items() if left <= 0]:
                del running[name]
                for after in followers.get(name, ()):
                    waiting[after].discard(name)
                    if not waiting[after]:
                        heapq.heappush(ready, (-self.behind[after], after))
        return now

    def memory(self, jobs: int) -> float:
        """MB that the hungriest nodes need at once."""
        return sum(sorted((node.estimate.memory for node in self.left), reverse=True)[:jobs])

    def as_json(self) -> dict[str, Any]:
        """All of it for programs: seconds, MB."""
        return {
            "name": self.name,
            "nodes": {name: _node(node) for name, node in self.nodes.items()},
            "left": {"nodes": len(self.left), "seconds": self.seconds_left},
            "shared": {"nodes": len(self.nodes), "seconds": self.seconds_shared},
            "alone": {"paths": self.arms, "nodes": self.nodes_alone, "seconds": self.seconds_alone},
            "critical_path": {
                "nodes": [node.name for node in self.critical_path],
                "seconds": self.seconds_critical,
            },
            "jobs": {
                str(jobs): {"seconds": self.wall(jobs), "memory_mb": self.memory(jobs)}
                for jobs in jobs_shown()
            },
            "machine": asdict(self.machine),
        }


def jobs_shown() -> list[int]:
    """Numbers of jobs for which a plan says the time: one, and doubled up to the cores."""
    most = max(2, cores())
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]


def _node(node: PlannedNode) -> dict[str, Any]:
    found = asdict(node.estimate)
    if isinf(node.estimate.high):
        found["high"] = None  # JSON has no infinity
    return {
        "stage": node.stage,
        "state": node.state,
        "reason": node.reason,
        "needs": list(node.needs),
    } | found
