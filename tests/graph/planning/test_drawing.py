"""A graph drawn: in the terminal, as Mermaid, as a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from lab.errors import LabError
from lab.graph.ablation import read_ablation
from lab.graph.compile import Graph, compile_graph
from lab.graph.node import REPOSITORY
from lab.graph.planning import drawing
from lab.graph.planning.layout import columns_of, heights_of, units_of
from lab.graph.state import NodeState

BASE = REPOSITORY / "experiments" / "ablations" / "smoke" / "params.yaml"
FACTORS: dict[str, Any] = {
    "connector": ["linear", "q_former"],
    "mix": ["understanding", "generation"],
    "width": {"narrow": {"text_decoder.dim": 16}, "wide": {"text_decoder.dim": 32}},
}
MANY = {"key": "stages.instruct.image_weight", "levels": {f"w{n}": 1.0 + n for n in range(15)}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "experiments" / "ablations" / "trial"
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(BASE.read_text())
    return folder


def graph(folder: Path, **changes: Any) -> Graph:
    tree = {
        "base": "params.yaml",
        "factors": FACTORS,
        "seeds": [0, 1, 2],
        "replicate_from": "align",
        **changes,
    }
    (folder / "ablation.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return compile_graph(read_ablation(folder / "ablation.yaml"))


def states(graph: Graph, **special: NodeState) -> dict[str, NodeState]:
    """What is shared is done, the rest waits; `special` are states of stages."""
    early = ("data", "judge", "encoder", "text_decoder", "image_decoder")
    usual = {True: NodeState("done"), False: NodeState("waiting", "something has to run")}
    return {name: special.get(n.stage, usual[n.stage in early]) for name, n in graph.nodes.items()}


def lines(graph: Graph, states: Mapping[str, NodeState]) -> list[str]:
    text = StringIO()
    Console(file=text, width=250, color_system=None).print(drawing.tree(graph, states))
    return text.getvalue().splitlines()


def edges(text: str) -> set[tuple[str, str]]:
    """Edges of a Mermaid chart, as titles."""
    titles = dict(re.findall(r'^    (n\d+)\["(.+)"\]$', text, re.MULTILINE))
    found = re.findall(r"^    (n\d+) --> (n\d+)$", text, re.MULTILINE)
    return {(titles[one], titles[other]) for one, other in found}


def reached(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Every pair with a way from one to the other."""
    while more := {(a, d) for a, b in arrows for c, d in arrows if b == c} - arrows:
        arrows = arrows | more
    return arrows


def names(line: str) -> list[str]:
    """The nodes of one line of a tree without states: `encoder@all > image_decoder` are two."""
    first, *more = re.sub(r"^\W+", "", line).split(" > ")
    return [first, *(f"{stage}@{first.partition('@')[2]}" for stage in more)]


def test_the_tree_shows_what_arms_share_once(folder: Path) -> None:
    compiled = graph(folder, seeds=[0])
    shown = [name for line in lines(compiled, {})[1:] for name in names(line)]
    assert sorted(shown) == sorted(compiled.nodes)


def test_an_arm_stands_below_what_it_shares_with_others(folder: Path) -> None:
    shown = lines(graph(folder, seeds=[0]), {})[1:]
    depth = [len(line) - len(re.sub(r"^\W+", "", line)) for line in shown]
    at = next(index for index, line in enumerate(shown) if names(line) == ["align@linear-narrow-s0"])
    after = next(index for index in range(at + 1, len(shown)) if depth[index] <= depth[at])
    assert [names(line)[0] for line in shown[at + 1 : after]] == [
        "instruct@linear-generation-narrow-s0",
        "instruct@linear-understanding-narrow-s0",
    ]


def test_seeds_are_one_line_that_counts_their_states(folder: Path) -> None:
    compiled = graph(folder)
    found = states(compiled)
    found["align@linear-narrow-s1"] = NodeState("failed", "exit code 1")
    found["align@linear-narrow-s2"] = NodeState("done")
    shown = lines(compiled, found)
    (line,) = [line for line in shown if "align@linear-narrow-s*" in line]
    assert "align@linear-narrow-s* (3 seeds)  1 done, 1 waiting, 1 failed (align@linear-narrow-s1)" in line
    assert len(shown) < len(compiled.nodes) / 2


def test_the_state_of_a_single_node_comes_with_its_reason(folder: Path) -> None:
    compiled = graph(folder, seeds=[0])
    found = states(compiled) | {"encoder@all": NodeState("stale", "vit.py changed")}
    assert any("encoder@all  stale (vit.py changed)" in line for line in lines(compiled, found))


def test_many_siblings_are_one_line(folder: Path) -> None:
    compiled = graph(folder, factors={"weight": MANY}, seeds=[0])
    found = states(compiled, evaluate=NodeState("stale"))
    assert any(
        "instruct, 15 nodes  15 waiting > evaluate  15 stale" in line for line in lines(compiled, found)
    )


def test_the_chart_says_of_all_nodes_what_they_need(folder: Path) -> None:
    compiled = graph(folder, seeds=[0])
    needed = {(need, name) for name, node in compiled.nodes.items() for need in node.inputs.values()}
    drawn = edges(drawing.mermaid(compiled, {}))
    assert reached(drawn) == reached(needed)
    for edge in drawn:  # and no edge says what others say
        assert edge not in reached(drawn - {edge})


def test_the_chart_is_valid_and_stable(folder: Path) -> None:
    compiled = graph(folder)
    found = states(compiled, align=NodeState("running"))
    text = drawing.mermaid(compiled, found)
    assert text == drawing.mermaid(graph(folder), dict(reversed(found.items())))
    head, *rest = text.splitlines()
    assert head == "flowchart LR"
    statement = re.compile(
        r'    (n\d+\["[\w@-]+"\]|n\d+ --> n\d+|class [n\d,]+ \w+|'
        r"classDef \w+ fill:#\w{8},stroke:#\w{6},color:#\w{6})"
    )
    assert all(statement.fullmatch(line) for line in rest)
    number = dict(re.findall(r'(n\d+)\["(.+)"\]', text))
    (running,) = re.findall(r"class (.+) running", text)
    assert {number[one] for one in running.split(",")} == {
        name for name, node in compiled.nodes.items() if node.stage == "align"
    }


def test_a_large_chart_draws_seeds_as_one(folder: Path) -> None:
    factors = {**FACTORS, "weight": MANY}
    text = drawing.mermaid(graph(folder, factors=factors, seeds=[0, 1, 2]), {})
    assert text.count("-->") < 500  # more GitHub does not draw
    assert "(3 seeds)" in text


@pytest.mark.parametrize("merged", [False, True])
def test_in_the_picture_nothing_lies_on_something_else(folder: Path, merged: bool) -> None:
    units = units_of(graph(folder), merged)
    assert sorted(name for unit in units for name in unit.nodes) == sorted(graph(folder).nodes)
    columns = columns_of(units)
    column = {unit.title: index for index, units in enumerate(columns) for unit in units}
    assert all(column[need] < column[unit.title] for unit in units for need in unit.needs)
    heights = heights_of(columns)
    for stacked in columns:
        rows = sorted(heights[unit.title] for unit in stacked)
        assert all(low + 0.999 < high for low, high in pairwise(rows))


def test_the_picture_is_written_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    compiled = graph(folder, factors={"connector": ["linear", "q_former"]})
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    drawing.picture(compiled, states(compiled), one)
    drawing.picture(compiled, states(compiled), other)
    assert one.read_bytes().startswith(b"\x89PNG")
    assert one.read_bytes() == other.read_bytes()
    with pytest.raises(LabError, match=r"nowhere.*cannot be written"):
        drawing.picture(compiled, {}, tmp_path / "nowhere" / "graph.png")
