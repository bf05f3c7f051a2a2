"""Runs the graph of an ablation: on this machine, or on SLURM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lab.errors import LabError
from lab.graph.compile import Graph, compile_graph
from lab.graph.context import prepare_node
from lab.graph.cores import default_jobs
from lab.graph.dependencies import tasks_of
from lab.graph.node import identity_of
from lab.graph.processes import only_runner
from lab.graph.record import DamageError, Recorder
from lab.graph.runner import run
from lab.graph.snapshot import take_snapshot
from lab.graph.state import NodeState, states_of
from lab.graph.task import Pipeline

if TYPE_CHECKING:
    from lab.graph.cluster.slurm import JobState


def states(graph: Graph) -> dict[str, NodeState]:
    """State of every node and of the comparison, as it is on disk."""
    return states_of(tasks_of(graph).values(), graph.folder)


def run_here(graph: Graph, targets: Sequence[str], jobs: int | None) -> int:
    """Bring nodes up to date on this machine.

    Args:
        graph: compiled and written.
        targets: nodes or stages, which are run with all that they need; none means everything.
        jobs: nodes at once; as many as cores where it is not stated.

    Returns, raises: as `lab.graph.runner.run`.
    """

    def read(recorder: Recorder) -> Pipeline:
        return Pipeline(tasks_of(graph), _not_done(graph))

    return run(graph.folder, read, targets, jobs or default_jobs(), graph.ablation.name)


def run_on_slurm(graph: Graph, targets: Sequence[str], detach: bool) -> int:
    """Bring nodes up to date on SLURM; the jobs need nobody to watch them.

    Args:
        graph: compiled and written.
        targets: as in `run_here`.
        detach: return once all is submitted.

    Returns:
        0 when all is up to date or submitted, 1 when a node failed.

    Raises:
        LabError: this is no cluster, it refuses a job, or a target names no node.
        KeyboardInterrupt: stopped while it watched; the jobs go on.
    """
    from rich.console import Console

    from lab.graph.cluster import slurm

    console = Console(highlight=False, soft_wrap=True)
    tasks = tasks_of(graph)
    with only_runner(graph.folder, console):
        snapshot = take_snapshot()
        chosen = Pipeline(tasks).select(targets)
        with Recorder(graph.folder, snapshot) as recorder:
            restored = _restore(graph, recorder, chosen)
        if restored:
            console.print(f"{restored} nodes from cache")
        jobs = slurm.submit(
            tasks,
            lambda: _not_done(graph) & chosen,
            graph.folder.resolve(),
            snapshot.folder,
            lambda name: graph.ablation.resources_of(name.partition("@")[0]),
        )
    if not jobs:
        console.print(f"{len(chosen)} nodes, all up to date")
        return 0
    console.print(
        f"{len(jobs)} of {len(chosen)} nodes are with SLURM; logs in {graph.folder / '.lab' / 'logs'}"
    )
    if detach:
        return 0

    def show(changed: Mapping[str, JobState]) -> None:
        for name, state in changed.items():
            console.print(f"  {name}: {state}", markup=False)

    slurm.watch(graph.folder.resolve(), show)
    left = _not_done(graph) & chosen
    rest = f", not {', '.join(sorted(left))}" if left else ""
    console.print(f"{len(chosen) - len(left)} of {len(chosen)} up to date{rest}")
    return 1 if left else 0


def on_slurm(graph: Graph) -> dict[str, JobState]:
    """What SLURM says of the nodes that are with it; nothing where none was submitted."""
    from lab.graph.cluster import slurm

    folder = graph.folder.resolve()
    if not (folder / ".lab" / "slurm").exists():
        return {}
    return {name: state for name, state in slurm.states(folder).items() if state.state != "done"}


def record_node(folder: Path, name: str) -> None:
    """Record a node that has run in dvc.lock; jobs that end at the same time wait for one another.

    Args:
        folder: of the ablation.
        name: of the node.

    Raises:
        LabError: there is no such node, it has not published its output, or what it reads was changed.
    """
    from lab.graph.ablation import read_ablation

    graph = compile_graph(read_ablation(folder / "ablation.yaml"))
    tasks = tasks_of(graph)
    if name not in tasks:
        raise LabError(f"{folder}: the declaration no longer has a node '{name}'; nothing to record")
    node = prepare_node(folder, name).node
    if name != "compare" and identity_of(node.output) != node.identity:
        raise LabError(f"{name}: what it reads was changed after it had run; run it again")
    with Recorder(folder, take_snapshot()) as recorder:
        recorder.record(tasks[name])


def _not_done(graph: Graph) -> set[str]:
    return {name for name, state in states(graph).items() if state.state != "done"}


def _restore(graph: Graph, recorder: Recorder, chosen: set[str]) -> int:
    """Bring back what DVC's cache has of nodes that are not up to date; how many it were."""
    tasks, left, verdicts = tasks_of(graph), _not_done(graph) & chosen, Counter[str]()
    recorder.trust(tasks[name] for name in chosen - left)
    for name in [name for name in tasks if name in left]:
        if tasks[name].parents & left:
            continue
        try:
            verdict = recorder.judge(tasks[name])
        except DamageError as error:
            recorder.discard(tasks[error.task])
            return sum(verdicts.values()) + _restore(graph, recorder, chosen)
        if verdict != "run":
            verdicts[verdict] += 1
            left.remove(name)
    return verdicts["from cache"]
