"""`lab graph`: an ablation as a graph of nodes: compile, show, plan, run, watch and cancel it."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lab.errors import LabError

if TYPE_CHECKING:
    from lab.graph.compile import Graph
    from lab.graph.state import NodeState

_ACTIONS = {
    "compile": "write the dvc.yaml files of an ablation beside its declaration",
    "show": "draw the graph: a tree, Mermaid, or a picture",
    "plan": "say what would run, how long it would take, and what sharing saves",
    "run": "run what is missing, several nodes at once, here or on SLURM",
    "status": "say how far every node is, and why the rest has to run",
    "cancel": "cancel what waits or runs on SLURM",
    "record": "record a node that has run (what a SLURM job calls at its end)",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    for action, summary in _ACTIONS.items():
        below = actions.add_parser(action, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if action == "record":
            below.add_argument("node", metavar="NODE", help="in the ablation of the current folder")
            continue
        below.add_argument("name", metavar="NAME", help="of experiments/ablations, or a folder")
        if action in ("run", "cancel"):
            below.add_argument(
                "nodes", metavar="NODE", nargs="*", default=[], help="instruct, align@linear-s0"
            )
        if action == "show":
            below.add_argument("--mermaid", action="store_true", help="print it for a Markdown page")
            below.add_argument("--png", metavar="FILE", type=Path, help="write a picture")
        if action == "plan":
            below.add_argument("--power", action="store_true", help="how many seeds would decide the claim")
        if action in ("plan", "status"):
            below.add_argument("--json", action="store_true", help="for programs")
        if action == "run":
            below.add_argument("-j", "--jobs", type=int, metavar="N", help="nodes at once (as many as cores)")
            below.add_argument("--on", choices=("here", "slurm"), default="here", help="where (here)")
            below.add_argument("--detach", action="store_true", help="on SLURM: submit and return")


def run(args: argparse.Namespace) -> int | None:
    if args.action == "record":
        _record(args.node)
        return None
    graph = _graph(args.name)
    action = {
        "compile": _compile,
        "show": _show,
        "plan": _plan,
        "run": _run,
        "status": _status,
        "cancel": _cancel,
    }[args.action]
    return action(graph, args)


def _graph(name: str) -> Graph:
    from lab.graph.ablation import find_ablation, read_ablation
    from lab.graph.compile import compile_graph

    return compile_graph(read_ablation(find_ablation(name)))


def _compile(graph: Graph, args: argparse.Namespace) -> None:
    from lab.graph.compiled import write

    changed = write(graph)
    arms, seeds = len(graph.arms), len(graph.ablation.seeds)
    print(f"{arms} arms, {seeds} seeds, {len(graph.nodes)} nodes; {len(changed)} files changed")


def _run(graph: Graph, args: argparse.Namespace) -> int:
    from lab.graph.compiled import write

    if args.jobs is not None and args.jobs < 1:
        raise LabError(f"--jobs must be at least 1, not {args.jobs}")
    write(graph)
    from lab.graph import engine

    if args.on == "slurm":
        return engine.run_on_slurm(graph, args.nodes, args.detach)
    return engine.run_here(graph, args.nodes, args.jobs)


def _show(graph: Graph, args: argparse.Namespace) -> None:
    from lab.graph.planning import drawing

    states = _states(graph)
    if args.mermaid:
        print(drawing.mermaid(graph, states))
    if args.png is not None:
        drawing.picture(graph, states, args.png)
    if not args.mermaid and args.png is None:
        from rich.console import Console

        Console(highlight=False).print(drawing.tree(graph, states))


def _plan(graph: Graph, args: argparse.Namespace) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if args.power:
        from lab.reports.ablation import power_table

        console.print(power_table(graph.folder))
        return
    from lab.graph.planning.estimate import estimate, render

    plan = estimate(graph, _states(graph))
    if args.json:
        print(json.dumps(plan.as_json(), indent=1))
    else:
        render(plan, console)


def _cancel(graph: Graph, args: argparse.Namespace) -> None:
    from lab.graph.cluster.slurm import cancel

    cancelled = cancel(graph.folder, args.nodes)
    print(f"cancelled {', '.join(cancelled)}" if cancelled else "nothing waits or runs on SLURM")


def _record(node: str) -> None:
    from lab.graph.engine import record_node

    record_node(Path.cwd(), node)


def _states(graph: Graph) -> dict[str, NodeState]:
    """States as they are on disk; nothing is written."""
    from lab.graph.engine import states

    return states(graph)


def _status(graph: Graph, args: argparse.Namespace) -> None:
    from lab.graph.engine import on_slurm

    states, jobs = _states(graph), on_slurm(graph)
    if args.json:
        shown = {name: {**vars(state), "job": str(jobs.get(name, ""))} for name, state in states.items()}
        print(json.dumps(shown, indent=1))
        return
    for name, state in states.items():
        if state.state != "done":
            job = f"  [{jobs[name]}]" if name in jobs else ""
            print(f"{state.state:8} {name}  {state.reason}{job}")
    counts = Counter(state.state for state in states.values())
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
