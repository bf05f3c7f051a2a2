"""A graph drawn: as a tree in the terminal, as Mermaid, as a picture.

All three leave out the edges that follow from others (everything needs the data), and draw nodes that differ
in their seed alone, or are too many to read, as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError
from lab.graph.planning.layout import Unit, columns_of, heights_of, seedless, title_of, units_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.text import Text
    from rich.tree import Tree

    from lab.graph.compile import Graph
    from lab.graph.state import NodeState

MOST = 12  # children that a tree lists; more become one line
_FAILED = 3  # that are named where several nodes are one line
_EDGES = 400  # of a Mermaid chart; GitHub draws 500
_ROWS = 24  # of a picture's column; where there are more, seeds become one

# state -> colour in the terminal, and in pictures (Okabe-Ito)
STATES: Mapping[str, tuple[str, str]] = {
    "done": ("green", "#009E73"),
    "recordable": ("magenta", "#CC79A7"),
    "running": ("cyan", "#0072B2"),
    "stale": ("yellow", "#E69F00"),
    "waiting": ("bright_black", "#999999"),
    "failed": ("red", "#D55E00"),
}
_UNKNOWN = ("", "#999999")


def tree(graph: Graph, states: Mapping[str, NodeState]) -> Tree:
    """Draw a graph for the terminal: what arms share once, and below it what needs it.

    A node stands below the last of its inputs. Seeds become one line, and so do more than MOST siblings.

    Args:
        graph: compiled.
        states: of its nodes, as far as they are known.
    """
    from rich.text import Text
    from rich.tree import Tree

    title = Text(graph.ablation.name, style="bold")
    title.append(f": {_size(graph)}", style="not bold")
    title.append_text(_states(graph.nodes, states))
    root = Tree(title, guide_style="bright_black")
    below = _children(graph)
    for group in _groups(graph, below[None]):
        _grow(root, graph, states, below, group)
    return root


def _children(graph: Graph) -> dict[str | None, list[str]]:
    """Node -> the nodes that are drawn below it; those without inputs below None."""
    place = {name: index for index, name in enumerate(graph.nodes)}
    below: dict[str | None, list[str]] = {None: []}
    for name, node in graph.nodes.items():
        parent = max(node.inputs.values(), key=place.__getitem__, default=None)
        below.setdefault(parent, []).append(name)
    return below


def _groups(graph: Graph, names: Iterable[str]) -> list[list[str]]:
    """Siblings by what is one line of the tree."""
    by_stage: dict[str, dict[str, list[str]]] = {}
    for name in names:
        node = graph.nodes[name]
        by_stage.setdefault(node.stage, {}).setdefault(seedless(node.label), []).append(name)
    groups: list[list[str]] = []
    for alike in by_stage.values():
        many = len(alike) > MOST
        groups += [[name for group in alike.values() for name in group]] if many else alike.values()
    return groups


def _grow(
    branch: Tree,
    graph: Graph,
    states: Mapping[str, NodeState],
    below: Mapping[str | None, Sequence[str]],
    group: Sequence[str],
) -> None:
    """Add a line for some siblings, together with what alone stands below them, and lines for the rest."""
    from rich.text import Text

    line = Text(title_of(graph, group))
    line.append_text(_states(group, states))
    groups = _groups(graph, [child for name in group for child in below.get(name, ())])
    while len(groups) == 1 and _labels(graph, groups[0]) == _labels(graph, group):
        group = groups[0]
        line.append(" > ", style="bright_black")
        line.append(graph.nodes[group[0]].stage)
        line.append_text(_states(group, states))
        groups = _groups(graph, [child for name in group for child in below.get(name, ())])
    under = branch.add(line)
    for children in groups:
        _grow(under, graph, states, below, children)


def _labels(graph: Graph, names: Iterable[str]) -> list[str]:
    return sorted(graph.nodes[name].label for name in names)


def _states(names: Iterable[str], states: Mapping[str, NodeState]) -> Text:
    """The states of nodes in their colours: of one with its reason, of several how many are in each."""
    from rich.text import Text

    names = list(names)
    counts = Counter(states[name].state for name in names if name in states)
    text = Text()
    for state in sorted(counts, key=list(STATES).index):
        text.append("  " if not text else ", ")
        number = "" if len(names) == 1 else f"{counts[state]} "
        text.append(f"{number}{state}", style=STATES[state][0])
        if state == "failed" and len(names) > 1:
            failed = [name for name in names if name in states and states[name].state == state]
            more = ", ..." if len(failed) > _FAILED else ""
            text.append(f" ({', '.join(failed[:_FAILED])}{more})", style=STATES[state][0])
    reason = states[names[0]].reason if len(names) == 1 and names[0] in states else ""
    if reason:
        text.append(f" ({reason})", style="bright_black")
    return text


def mermaid(graph: Graph, states: Mapping[str, NodeState]) -> str:
    """A Mermaid flowchart: same graph, same text.

    Args:
        graph: compiled.
        states: of its nodes, as far as they are known.
    """
    units = units_of(graph, merged=False)
    if sum(len(unit.needs) for unit in units) > _EDGES:
        units = units_of(graph, merged=True)
    ids = {unit.title: f"n{index}" for index, unit in enumerate(units)}
    lines = ["flowchart LR"]
    lines += [f'    {ids[unit.title]}["{unit.title}"]' for unit in units]
    lines += [f"    {ids[need]} --> {ids[unit.title]}" for unit in units for need in unit.needs]
    by_state: dict[str, list[str]] = {}
    for unit in units:
        found = {states[name].state for name in unit.nodes if name in states}
        if found:
            by_state.setdefault(found.pop() if len(found) == 1 else "several", []).append(ids[unit.title])
    colours = {state: colour for state, (_, colour) in STATES.items()} | {"several": "#56B4E9"}
    for state, colour in colours.items():
        if state in by_state:
            lines.append(f"    classDef {state} fill:{colour}33,stroke:{colour},color:#222222")
            lines.append(f"    class {','.join(by_state[state])} {state}")
    return "\n".join(lines) + "\n"


def picture(graph: Graph, states: Mapping[str, NodeState], path: Path) -> None:
    """Draw a graph as a PNG, a column for stages that are equally far from the data.

    Args:
        graph: compiled.
        states: of its nodes, as far as they are known.
        path: of the PNG.

    Raises:
        LabError: it cannot be written.
    """
    import matplotlib.pyplot as plt

    from lab.reports.look import save, styled

    units = units_of(graph, merged=False)
    columns = columns_of(units)
    if max(map(len, columns)) > _ROWS:
        units = units_of(graph, merged=True)
        columns = columns_of(units)
    heights = heights_of(columns)
    widths = [0.35 + 0.075 * max(len(unit.title) for unit in column) for column in columns]  # inches
    gap, row = 0.7, 0.34
    lefts = [sum(widths[:index]) + gap * index for index in range(len(columns))]
    low, high = min(heights.values()), max(heights.values())
    size = lefts[-1] + widths[-1], (high - low + 1) * row
    with styled():
        figure = plt.figure(figsize=(size[0] + 0.2, size[1] + 1.0))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-0.1, size[0] + 0.1)
        axes.set_ylim(high * row + row / 2 + 0.5, low * row - row / 2 - 0.5)  # downwards, in inches
        axes.axis("off")
        boxes = {
            unit.title: (left, width, heights[unit.title] * row)
            for column, left, width in zip(columns, lefts, widths, strict=True)
            for unit in column
        }
        for unit in units:
            for need in unit.needs:
                _edge(axes, boxes[need], boxes[unit.title])
        for unit in units:
            _box(axes, unit, states, boxes[unit.title], row)
        top = low * row - row / 2 - 0.3
        axes.text(0, top, f"{graph.ablation.name}: {_size(graph)}", weight="bold", fontsize=11, va="center")
        known: Counter[str] = Counter(found.state for name, found in states.items() if name in graph.nodes)
        _legend(axes, known, high * row + row / 2 + 0.25)
        try:
            save(figure, path)
        except OSError as error:
            raise LabError(f"{path}: cannot be written: {error}") from error


def _edge(axes: Axes, start: tuple[float, float, float], end: tuple[float, float, float]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    from lab.reports.look import PALE

    x0, x1 = start[0] + start[1], end[0]
    bend = min(0.35, (x1 - x0) / 2)
    corners = [(x0, start[2]), (x0 + bend, start[2]), (x1 - bend, end[2]), (x1, end[2])]
    curve = Curve(corners, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    axes.add_patch(PathPatch(curve, fill=False, edgecolor=PALE, linewidth=0.9, zorder=1))


def _box(
    axes: Axes,
    unit: Unit,
    states: Mapping[str, NodeState],
    box: tuple[float, float, float],
    row: float,
) -> None:
    """A unit, coloured in the shares of its nodes' states."""
    from matplotlib.patches import FancyBboxPatch, Rectangle

    left, width, middle = box
    height = 0.72 * row
    counts = Counter(states[name].state if name in states else "" for name in unit.nodes)
    shape: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.05", "linewidth": 1.0}
    place = (left, middle - height / 2)
    main = counts.most_common(1)[0][0]
    frame = FancyBboxPatch(
        place, width, height, facecolor="white", edgecolor=STATES.get(main, _UNKNOWN)[1], zorder=3, **shape
    )
    axes.add_patch(frame)
    start = left
    for state in [state for state in (*STATES, "") if state in counts]:
        share = width * counts[state] / len(unit.nodes)
        colour = STATES.get(state, _UNKNOWN)[1]
        part = Rectangle(
            (start, place[1]), share, height, facecolor=colour, alpha=0.22, linewidth=0, zorder=4
        )
        axes.add_patch(part)
        part.set_clip_path(frame)
        start += share
    axes.text(left + width / 2, middle, unit.title, ha="center", va="center", fontsize=7.5, zorder=5)


def _legend(axes: Axes, counts: Counter[str], middle: float) -> None:
    """What the colours mean, in a line at this height."""
    from matplotlib.patches import Rectangle

    left = 0.0
    for state, (_, colour) in STATES.items():
        if state in counts:
            text = f"{counts[state]} {state}"
            mark = Rectangle((left, middle - 0.07), 0.2, 0.14, facecolor=colour, alpha=0.4, edgecolor=colour)
            axes.add_patch(mark)
            axes.text(left + 0.28, middle, text, va="center", fontsize=8.5)
            left += 0.55 + 0.075 * len(text)


def _size(graph: Graph) -> str:
    seeds = len(graph.ablation.seeds)
    return f"{len(graph.nodes)} nodes, {len(graph.arms)} arms" + (f", {seeds} seeds" if seeds > 1 else "")
