"""What a graph will take: time and memory of every node, what sharing saves, the critical path.

A node that has run takes what it took. One like a node that has run takes as long in proportion to its
samples, or to its operations where a component differs. Where no node of the stage has run, operations are
counted and divided by what the machine reaches in a short probe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isinf
from statistics import median
from typing import TYPE_CHECKING

from lab.errors import LabError
from lab.graph.planning.earlier import Earlier, checkout_of, earlier_runs
from lab.graph.planning.machine import this_machine
from lab.graph.planning.operations import Model
from lab.graph.planning.plan import Estimate, Plan, PlannedNode, jobs_shown
from lab.graph.planning.work import Work, work_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lab.graph.compile import Graph
    from lab.graph.state import NodeState

# By which an estimate from operations may be off. The stages of the reference ablation took 0.8 to 1.6 times
# as long as estimated, two at a time on two cores.
FACTOR = 2.0
_UNITS = ((3600, "h"), (60, "min"), (1, "s"))
_UNKNOWN = (LabError, OSError, ValueError, RuntimeError)  # of parts that cannot be built without weights


def estimate(graph: Graph, states: Mapping[str, NodeState]) -> Plan:
    """Estimate what every node of a graph takes.

    Args:
        graph: compiled.
        states: of its nodes; one that is not named has to run.
    """
    memory = checkout_of(graph.folder) / ".lab"
    machine = this_machine(memory / "probe.json")
    model = Model(machine.rate, memory / "operations.json")
    guess = _Guess(earlier_runs(graph), model)
    nodes: dict[str, PlannedNode] = {}
    for name, node in graph.nodes.items():
        found = states.get(name)
        nodes[name] = PlannedNode(
            name=name,
            stage=node.stage,
            state=found.state if found else "stale",
            reason=found.reason if found else "",
            needs=tuple(node.inputs.values()),
            estimate=guess.of(f"{graph.folder.name}/{name}", work_of(node.stage, node.reads, node.connector)),
        )
    model.save()
    paths = [names for by_seed in graph.arms.values() for names in by_seed.values()]
    return Plan(
        name=graph.ablation.name,
        nodes=nodes,
        arms=len(paths),
        nodes_alone=sum(map(len, paths)),
        seconds_alone=sum(nodes[name].estimate.seconds for names in paths for name in names),
        machine=machine,
    )


class _Guess:
    """Estimates of works, one for all that are alike."""

    def __init__(self, earlier: Sequence[Earlier], model: Model) -> None:
        self.model = model
        self.by_stage: dict[str, list[Earlier]] = {}
        for run in earlier:
            self.by_stage.setdefault(run.work.stage, []).append(run)
        self.own = {run.name: run for run in earlier if run.whole}
        self.known: dict[str, Estimate] = {}

    def of(self, name: str, work: Work) -> Estimate:
        own = self.own.get(name)
        if own is not None and own.work.settings == work.settings and own.memory is not None:
            return Estimate(own.seconds, own.seconds, own.seconds, own.memory, "its last run", (name,))
        settings = {key: value for key, value in work.settings.items() if key not in ("seed", "mix")}
        key = f"{work.stage} {sorted(settings.items(), key=str)}"
        if key not in self.known:
            runs = self.by_stage.get(work.stage)
            self.known[key] = self._from_runs(work, runs) if runs else self._from_operations(work)
        return self.known[key]

    def _from_runs(self, work: Work, runs: Sequence[Earlier]) -> Estimate:
        """From the nearest runs of the stage."""
        apart = [run.distance(work) for run in runs]
        nearest = [run for run, distance in zip(runs, apart, strict=True) if distance == min(apart)]
        seconds = [self._scaled(work, run) for run in nearest]
        alike = all(run.work.shape == work.shape and run.work.mix == work.mix for run in nearest)
        kind = "earlier" if alike else "similar"
        return Estimate(
            median(seconds),
            min(seconds),
            max(seconds),
            self._memory(work, nearest),
            f"{len(nearest)} {kind} run{'s' if len(nearest) > 1 else ''}",
            tuple(run.name for run in nearest),
        )

    def _scaled(self, work: Work, run: Earlier) -> float:
        """Seconds of a work from those of another one."""
        ratio = work.samples / max(run.work.samples, 1.0)
        if work.shape != run.work.shape or work.budget or run.work.budget:
            mine, other = self._modelled(work), self._modelled(run.work)
            ratio = mine / other if mine and other else ratio
        around = self.model.around(work)
        if not run.whole:
            return run.seconds * ratio + around
        around = min(around, 0.9 * run.seconds)  # another machine may be done before this one has begun
        return (run.seconds - around) * ratio + around

    def _memory(self, work: Work, runs: Iterable[Earlier]) -> float:
        known = [(run.memory, run.work) for run in runs if run.memory is not None]
        if not known:
            return self._needed(work)
        return max(
            memory + self._needed(work) - self._needed(other) if other.shape != work.shape else memory
            for memory, other in known
        )

    def _from_operations(self, work: Work) -> Estimate:
        modelled, around, memory = self._modelled(work), self.model.around(work), self._needed(work)
        if modelled is None:
            return Estimate(around, around, float("inf"), memory, "nothing: its parts need their weights")
        seconds = modelled + around
        return Estimate(seconds, seconds / FACTOR, seconds * FACTOR, memory, "operations")

    def _modelled(self, work: Work) -> float | None:
        """Seconds from operations; None where a part cannot be built without its weights."""
        try:
            return self.model.seconds(work)
        except _UNKNOWN:
            return None

    def _needed(self, work: Work) -> float:
        """MB from what a work holds; 0 where that is not known."""
        try:
            return self.model.memory(work)
        except _UNKNOWN:
            return 0.0


# -- as a table ----------------------------------------------------------------------------------------------


def render(plan: Plan, console: Console) -> None:
    """Print a plan: a row a stage, then sharing, the critical path and the time with several jobs."""
    left = plan.left
    lines = []
    paths = f"{plan.arms} path{'' if plan.arms == 1 else 's'} (an arm with a seed)"
    console.print(
        f"[bold]{plan.name}[/]: {len(plan.nodes)} nodes for {paths}; "
        f"{len(plan.nodes) - len(left)} done, {len(left)} left",
        soft_wrap=True,
    )
    console.print(_table(plan))
    nodes, seconds = len(plan.nodes), plan.seconds_shared
    saved = 1 - seconds / plan.seconds_alone if plan.seconds_alone else 0.0
    lines.append(
        f"shared         {nodes} nodes instead of {plan.nodes_alone}: {duration(seconds)} "
        f"instead of {duration(plan.seconds_alone)} in all, {saved:.0%} less"
    )
    if left:
        path = " > ".join(f"{node.name} {duration(node.estimate.seconds)}" for node in plan.critical_path)
        lines.append(f"critical path  {duration(plan.seconds_critical)}: {path}")
        lines += [_total(plan, jobs) for jobs in jobs_shown()]
    if any(node.estimate.source == "operations" for node in left):
        lines.append(
            f"Estimates from operations are right within a factor of {FACTOR:g}; runs make the next better."
        )
    console.print("\n".join(lines), soft_wrap=True)


def duration(seconds: float) -> str:
    """A time as a person says it: 8 s, 2 min 5 s, 3 h 20 min, 2 d 4 h."""
    if isinf(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for large, small, size, part in (("min", "s", 60, 1), ("h", "min", 3600, 60), ("d", "h", 86400, 3600)):
        if whole < {"min": 3600, "h": 86400}.get(large, float("inf")):
            rest = whole % size // part
            return f"{whole // size} {large}" + (f" {rest} {small}" if rest else "")
    raise AssertionError("a day has no end")


def _table(plan: Plan) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for title in ("stage", "nodes", "done", "left", "each", "in all", "memory"):
        table.add_column(title, justify="left" if title == "stage" else "right", no_wrap=True)
    table.add_column("from")
    stages: dict[str, list[PlannedNode]] = {}
    for node in plan.nodes.values():
        stages.setdefault(node.stage, []).append(node)
    for stage, nodes in stages.items():
        left = [node.estimate for node in nodes if node.left]
        seconds = sum(one.seconds for one in left)
        table.add_row(
            stage,
            str(len(nodes)),
            str(len(nodes) - len(left)),
            str(len(left)),
            _range([node.estimate.seconds for node in nodes]),
            duration(seconds) if left else "",
            _memory(max(node.estimate.memory for node in nodes)),
            _sources(left or [node.estimate for node in nodes]),
        )
    return table


def _sources(estimates: Iterable[Estimate]) -> str:
    """Where the estimates of a stage come from, the most frequent first."""
    counts: dict[str, int] = {}
    for one in estimates:
        counts[one.source] = counts.get(one.source, 0) + 1
    ordered = sorted(counts, key=lambda source: (-counts[source], source))
    more = f", {len(ordered) - 2} more" if len(ordered) > 2 else ""
    return ", ".join(ordered[:2]) + more


def _range(seconds: Sequence[float]) -> str:
    """The least and the most, in one unit each."""
    ends = []
    for end in (min(seconds), max(seconds)):
        size, unit = next((size, unit) for size, unit in _UNITS if end >= 2 * size or size == 1)
        ends.append((f"{end / size:.0f}" if unit == "s" else f"{end / size:.1f}", unit))
    (low, small), (high, large) = ends
    if (low, small) == (high, large):
        return f"{low} {small}"
    return f"{low}{'' if small == large else f' {small}'} to {high} {large}"


def _total(plan: Plan, jobs: int) -> str:
    """The time with several jobs, between what the estimates of the nodes leave it, and the memory."""
    wall, alone = plan.wall(jobs), plan.seconds_left
    low, high = (sum(getattr(node.estimate, end) for node in plan.left) / alone for end in ("low", "high"))
    between = f" ({duration(wall * low)} to {duration(wall * high)})" if high - low > 0.02 else ""
    slower = plan.machine.slower(jobs)
    note = f" (each node {slower:.2f} times as long as alone, as measured)" if slower >= 1.005 else ""
    return f"--jobs {jobs:<8}{duration(wall)}{between}, {_memory(plan.memory(jobs))} at most{note}"


def _memory(megabytes: float) -> str:
    if megabytes <= 0:
        return "unknown"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"
