"""Factors that are amounts of data: what mix and steps follow, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.errors import LabError
from lab.graph.ablation import Ablation, read_ablation
from lab.graph.compile import compile_graph
from lab.samples.plan import Even

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "experiments" / "ablations" / "smoke" / "params.yaml"
READ = {"samples": [0, 64, 192], "tasks": {"caption": 1, "vqa": 3}}
DRAWN = {"samples": [0, 64], "tasks": {"text_to_image": 1}}
NOTHING = {"read": "read0", "drawn": "drawn0"}

Read = Callable[..., Ablation]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a declaration of a checkout of its own; batches are of 16."""
    folder = tmp_path / "experiments" / "ablations" / "mine"
    folder.mkdir(parents=True)
    base = yaml.safe_load(SMOKE.read_text())
    base["stages"]["instruct"]["batch_size"] = 16
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(base, sort_keys=False))

    def declared(**changes: Any) -> Ablation:
        factors = {"read": READ, "drawn": DRAWN}
        tree = {"base": "params.yaml", "factors": factors, "exclude": [NOTHING], **changes}
        (folder / "ablation.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return read_ablation(folder / "ablation.yaml")

    return declared


def test_mix_and_steps_follow_from_samples(read: Read) -> None:
    arms = {arm.name: arm.params for arm in read().arms}
    assert list(arms) == [
        "read0-drawn64",
        "read64-drawn0",
        "read64-drawn64",
        "read192-drawn0",
        "read192-drawn64",
    ]
    params = arms["read192-drawn64"]
    (mix,) = params.mixes.values()
    assert mix == {"caption": 48.0, "vqa": 144.0, "text_to_image": 64.0}
    assert params.stages.instruct is not None
    assert params.stages.instruct.steps == 16
    cycle = Even(mix).pattern
    assert [cycle.count(task) for task in mix] == [48, 144, 64]  # 256 samples: to the sample
    (mix,) = arms["read0-drawn64"].mixes.values()
    assert mix == {"text_to_image": 64.0}


def test_arms_share_all_that_comes_before_their_own_mix(read: Read) -> None:
    graph = compile_graph(read(seeds=[0, 1], replicate_from="align"))
    names = [node.name for node in graph.nodes.values() if node.stage in ("align", "instruct")]
    assert names[:2] == ["align@s0", "align@s1"]
    assert len(names) == 2 + 5 * 2
    assert "instruct@read192-drawn64-s1" in names


def test_another_amount_changes_no_arm_that_was_there(read: Read) -> None:
    before = {node.name: node.key for node in compile_graph(read()).nodes.values()}
    more = {"read": {**READ, "samples": [0, 64, 128, 192]}, "drawn": DRAWN}
    after = {node.name: node.key for node in compile_graph(read(factors=more)).nodes.values()}
    assert before.items() <= after.items()
    assert "instruct@read128-drawn64" in {name.rpartition("-s")[0] for name in after}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"exclude": []}, "no samples at all; leave this arm out with `exclude`"),
        (
            {"factors": {"read": {**READ, "samples": [64, 100]}, "drawn": DRAWN}, "exclude": []},
            "factors.read.read100 and factors.drawn.drawn0: 100 samples are no whole number of batches of 16",
        ),
        (
            {"factors": {"read": {"samples": [0, 64], "tasks": {"vqa": 0}}, "drawn": DRAWN}},
            "factors.read.tasks: expected weights of at least 0, one of them above",
        ),
        (
            {"factors": {"read": {"samples": [], "tasks": {"vqa": 1}}}},
            "factors.read.samples: expected a list",
        ),
        (
            {"factors": {"read": {"samples": [64]}}},
            "factors.read.tasks: expected a mapping of tasks to weights",
        ),
        ({"factors": {"read": {**READ, "samples": [-16, 64]}}}, "at least 0, not -16"),
        ({"factors": {"read": {**READ, "samples": [64, 64]}}}, "factors.read.samples: 64 twice"),
        (
            {"factors": {"read": {**READ, "sample": 1}}},
            "unknown key 'factors.read.sample' (did you mean 'samples'?)",
        ),
        (
            {"factors": {"read": {**READ, "tasks": {"vqaa": 1}}, "drawn": DRAWN}},
            "'vqaa' (did you mean 'vqa'?)",
        ),
        (
            {"factors": {"read": READ, "drawn": {**DRAWN, "tasks": {"vqa": 1}}}},
            "'vqa' is a task of another factor with samples too",
        ),
        ({"budget": {"samples": 64, "stages": ["instruct"]}}, "which follows from the budget"),
        (
            {"set": {"stages.instruct.steps": 3}},
            "sets 'stages.instruct.steps', which follows from the samples of",
        ),
        (
            {"factors": {"read": READ, "drawn": DRAWN, "mix.vqa": [1, 2]}},
            "sets 'mix.vqa', which follows from the samples of read",
        ),
    ],
)
def test_a_mistake_is_named(read: Read, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(LabError) as caught:
        read(**changes)
    assert expected in str(caught.value)
