"""An ablation as nodes: what arms share, how nodes are called, and what a change of the declaration moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.graph.ablation import read_ablation
from lab.graph.compile import Graph, compile_graph
from lab.graph.compiled import files_of, write
from lab.graph.dependencies import tasks_of
from lab.graph.node import REPOSITORY

BASE = REPOSITORY / "experiments" / "ablations" / "smoke" / "params.yaml"
FACTORS: dict[str, Any] = {
    "connector": ["linear", "q_former"],
    "mix": ["understanding", "generation"],
    "queries": {
        "when": {"connector": "q_former"},
        "levels": {"few": {"connector.num_queries": 2}, "many": {"connector.num_queries": 8}},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "experiments" / "ablations" / "trial"
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(BASE.read_text())
    return folder


def graph(folder: Path, **changes: Any) -> Graph:
    tree = {"base": "params.yaml", "factors": FACTORS, "seeds": [0, 1], "replicate_from": "align", **changes}
    (folder / "ablation.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return compile_graph(read_ablation(folder / "ablation.yaml"))


def test_arms_share_every_node_whose_inputs_are_equal(folder: Path) -> None:
    nodes = graph(folder).nodes
    counts = {stage: sum(node.stage == stage for node in nodes.values()) for stage in ("data", "encoder")}
    assert counts == {"data": 1, "encoder": 1}
    align = {node.label for node in nodes.values() if node.stage == "align"}
    assert align == {f"{label}-s{s}" for label in ("linear", "q_former-few", "q_former-many") for s in (0, 1)}
    instruct = {
        node.label for node in nodes.values() if node.stage == "instruct" and node.label.endswith("s0")
    }
    assert instruct == {
        f"{connector}-s0"
        for connector in (
            "linear-understanding",
            "linear-generation",
            "q_former-understanding-few",
            "q_former-understanding-many",
            "q_former-generation-few",
            "q_former-generation-many",
        )
    }
    assert nodes["instruct@linear-generation-s1"].inputs["align"] == "align@linear-s1"
    assert nodes["evaluate@linear-generation-s1"].inputs["image_decoder"] == "image_decoder@all"


def test_the_seed_changes_what_comes_after_the_stated_stage(folder: Path) -> None:
    by_default = graph(folder, replicate_from="encoder").nodes
    assert {node.label for node in by_default.values() if node.stage in ("data", "judge")} == {"all"}
    assert {node.label for node in by_default.values() if node.stage == "encoder"} == {"s0", "s1"}
    assert by_default["encoder@s1"].params.seed == 1
    assert by_default["data@all"].params.seed == 0
    assert by_default["align@linear-s1"].inputs["encoder"] == "encoder@s1"


def test_a_level_that_touches_an_early_stage_divides_all_after_it(folder: Path) -> None:
    factors = {"width": {"narrow": {"text_decoder.dim": 16}, "wide": {"text_decoder.dim": 32}}}
    nodes = graph(folder, factors=factors).nodes
    labels = {stage: {n.label for n in nodes.values() if n.stage == stage} for stage in ("encoder", "align")}
    assert labels == {"encoder": {"all"}, "align": {"narrow-s0", "narrow-s1", "wide-s0", "wide-s1"}}
    assert {n.label for n in nodes.values() if n.stage == "text_decoder"} == {"narrow", "wide"}


def test_a_node_reads_only_what_its_file_says(folder: Path) -> None:
    compiled = graph(folder)
    texts = files_of(compiled)
    align = yaml.safe_load(texts["nodes/linear-s0/align.yaml"])
    assert align["inputs"] == {"data": "all", "encoder": "all", "text_decoder": "all"}
    assert set(align["params"]["stages"]) == {"align"}
    assert "mixes" not in align["params"]
    stage = yaml.safe_load(texts["nodes/linear-s0/dvc.yaml"])["stages"]["align"]
    assert stage["foreach"] == ["linear-s0"]
    assert stage["do"]["cmd"] == "lab stage align@linear-s0"
    assert {"nodes/linear-s0/align.yaml", "output/data/all", "output/encoder/all"} <= set(stage["do"]["deps"])
    connectors = [dep for dep in stage["do"]["deps"] if "components/connectors" in dep]
    assert [Path(dep).name for dep in connectors] == ["linear.py"]


def test_the_text_is_the_same_whatever_the_order_of_levels(folder: Path) -> None:
    before = files_of(graph(folder))
    turned = {"connector": ["q_former", "linear"], "mix": ["generation", "understanding"]}
    after = files_of(graph(folder, factors={**FACTORS, **turned}))
    assert {name for name in before if before[name] != after[name]} == {"compare.yaml"}
    assert before.keys() == after.keys()


def test_a_new_level_adds_nodes_and_changes_none(folder: Path) -> None:
    write(graph(folder))
    before = {path: path.read_text() for path in folder.glob("nodes/*/*.yaml")}
    more = {**FACTORS, "connector": ["linear", "mlp", "q_former"]}
    changed = write(graph(folder, factors=more, seeds=[0, 1, 2]))
    assert {path: path.read_text() for path in before} == before
    assert "nodes/mlp-s0/align.yaml" in changed
    assert "nodes/linear-s2/align.yaml" in changed
    write(graph(folder))
    assert {path: path.read_text() for path in folder.glob("nodes/*/*.yaml")} == before
    assert not (folder / "nodes" / "mlp-s0").exists()
    assert write(graph(folder)) == []


def test_levels_of_equal_content_are_one_node_and_keep_the_name_they_had(folder: Path) -> None:
    def widths(*names: str) -> dict[str, Any]:
        rates = {name: 0.001 * (index + 1) for index, name in enumerate(names)}
        return {
            "width": {
                name: {"text_decoder.dim": 16, "stages.instruct.image_weight": rates[name]} for name in names
            }
        }

    write(first := graph(folder, factors=widths("middle", "short")))
    assert {n.label for n in first.nodes.values() if n.stage == "text_decoder"} == {"short"}
    second = graph(folder, factors=widths("middle", "short", "a"))
    assert {n.label for n in second.nodes.values() if n.stage == "text_decoder"} == {"short"}


def test_the_comparison_depends_on_every_evaluation(folder: Path) -> None:
    compiled = graph(folder)
    compare = tasks_of(compiled)["compare"]
    evaluated = {name for name in compiled.nodes if name.startswith("evaluate@")}
    assert evaluated <= compare.parents
    assert len(evaluated) == 12
    tree = yaml.safe_load(files_of(compiled)["compare.yaml"])
    assert tree["arms"]["q_former-generation-few"]["evaluate"] == {
        0: "q_former-generation-few-s0",
        1: "q_former-generation-few-s1",
    }
    assert tree["arms"]["linear-generation"]["levels"] == {"connector": "linear", "mix": "generation"}


def test_files_are_small_whatever_the_size_of_the_graph(folder: Path) -> None:
    factors = {
        "connector": ["linear", "mlp", "q_former", "perceiver"],
        "mix": ["understanding", "generation"],
    }
    compiled = graph(folder, factors=factors, seeds=list(range(10)))
    assert len(compiled.nodes) > 200
    for name, text in files_of(compiled).items():
        if name.endswith("dvc.yaml"):
            assert len(yaml.safe_load(text)["stages"]) <= 20


@pytest.mark.parametrize(
    "declaration", sorted((REPOSITORY / "experiments" / "ablations").glob("*/ablation.yaml")), ids=str
)
def test_what_is_committed_is_what_the_declaration_compiles_to(declaration: Path) -> None:
    """Plain `dvc repro` in a fresh clone runs the ablation that is declared."""
    for name, text in files_of(compile_graph(read_ablation(declaration))).items():
        assert (declaration.parent / name).read_text() == text, name
