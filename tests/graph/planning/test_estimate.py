"""What a graph takes: from earlier runs, from operations, and for all its nodes together."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from lab.graph.ablation import read_ablation
from lab.graph.compile import Graph, compile_graph
from lab.graph.compiled import write
from lab.graph.node import REPOSITORY
from lab.graph.planning import estimate as estimates
from lab.graph.planning import machine, operations
from lab.graph.planning.estimate import FACTOR, duration, estimate, render
from lab.graph.planning.machine import Machine, this_machine
from lab.graph.planning.plan import Estimate, Plan, PlannedNode
from lab.graph.state import NodeState

BASE = REPOSITORY / "experiments" / "ablations" / "smoke" / "params.yaml"
FACTORS: dict[str, Any] = {"connector": ["linear", "q_former"], "mix": ["understanding", "generation"]}
MACHINE = Machine(50e9, {2: 1.25})


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that need not be measured."""
    monkeypatch.setattr(estimates, "this_machine", lambda file: MACHINE)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "experiments" / "ablations").mkdir(parents=True)
    return tmp_path


def graph(checkout: Path, name: str = "trial", **changes: Any) -> Graph:
    folder = checkout / "experiments" / "ablations" / name
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(BASE.read_text())
    tree = {"base": "params.yaml", "factors": FACTORS, "seeds": [0, 1], "replicate_from": "align", **changes}
    (folder / "ablation.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return compile_graph(read_ablation(folder / "ablation.yaml"))


def timed(graph: Graph, **seconds: float) -> None:
    """Leave the runner's record: each node takes what its stage takes, 1 s if that is not said."""
    file = graph.folder / ".lab" / "timings.json"
    file.parent.mkdir()
    records = {
        name: {"seconds": seconds.get(node.stage, 1.0), "memory_mb": 700}
        for name, node in graph.nodes.items()
    }
    file.write_text(json.dumps(records))


def plan_of(nodes: Mapping[str, tuple[float, tuple[str, ...]]], slower: float = 1.0, **states: str) -> Plan:
    """A plan of nodes that are given as seconds and needs."""
    made = {
        name: PlannedNode(
            name, name, states.get(name, "stale"), "", needs, Estimate(seconds, seconds, seconds, 100, "")
        )
        for name, (seconds, needs) in nodes.items()
    }
    return Plan("trial", made, 1, len(made), 1.0, Machine(1.0, {2: slower, 3: slower}))


# -- one node ------------------------------------------------------------------------------------------------


def test_a_node_that_has_run_takes_what_it_took(checkout: Path) -> None:
    compiled = graph(checkout)
    timed(compiled, instruct=77.0)
    found = estimate(compiled, {}).nodes["instruct@linear-generation-s1"].estimate
    assert (found.seconds, found.low, found.high, found.memory) == (77.0, 77.0, 77.0, 700)
    assert found.source == "its last run"


def test_more_steps_take_longer_in_proportion(checkout: Path) -> None:
    earlier = graph(checkout, "earlier", set={"stages.instruct.steps": 100})
    write(earlier)
    timed(earlier, instruct=58.0)  # 8 of which are imports and validation
    later = graph(checkout, set={"stages.instruct.steps": 300})
    found = estimate(later, {}).nodes["instruct@linear-generation-s0"].estimate
    assert found.seconds == pytest.approx(8 + 3 * 50)
    assert found.source == "2 earlier runs"
    assert found.runs == tuple(f"earlier/instruct@linear-generation-s{seed}" for seed in (0, 1))


def test_the_nearest_run_counts(checkout: Path) -> None:
    """Components before mixes before seeds; of another component only where its own has not run."""
    earlier = graph(checkout, "earlier")
    write(earlier)
    timed(earlier)
    file = earlier.folder / ".lab" / "timings.json"
    records = json.loads(file.read_text())
    for name in records:
        if name.startswith("instruct@q_former"):
            records[name]["seconds"] = 60.0 if "generation" in name else 90.0
    file.write_text(json.dumps(records))
    found = estimate(graph(checkout), {}).nodes
    assert found["instruct@q_former-generation-s0"].estimate.seconds == pytest.approx(60.0)
    assert found["instruct@q_former-understanding-s1"].estimate.seconds == pytest.approx(90.0)
    assert found["instruct@linear-understanding-s1"].estimate.seconds == pytest.approx(1.0)


def test_seeds_that_differ_give_a_range(checkout: Path) -> None:
    earlier = graph(checkout, "earlier")
    write(earlier)
    timed(earlier)
    file = earlier.folder / ".lab" / "timings.json"
    records = json.loads(file.read_text())
    records["align@linear-s0"]["seconds"], records["align@linear-s1"]["seconds"] = 20.0, 30.0
    file.write_text(json.dumps(records))
    found = estimate(graph(checkout), {}).nodes["align@linear-s0"].estimate
    assert (found.low, found.seconds, found.high) == pytest.approx((20.0, 25.0, 30.0))


def test_metrics_in_git_serve_where_nothing_has_run_here(checkout: Path) -> None:
    """As of the pipelines whose stages are written by hand; they hold the time of the training alone."""
    pipeline = checkout / "experiments" / "ablations" / "reference"
    (pipeline / "metrics" / "instruct").mkdir(parents=True)
    tree = yaml.safe_load(BASE.read_text())
    (pipeline / "params.yaml").write_text(yaml.safe_dump(tree))
    connector, mix = tree["connectors"][0], next(iter(tree["mixes"]))
    numbers = {"cost/train_seconds": 40.0, "cost/peak_memory_mb": 650.0}
    (pipeline / "metrics" / "instruct" / f"{connector}-{mix}.json").write_text(json.dumps(numbers))
    compiled = graph(
        checkout, factors={"connector": [connector, "mlp"], "mix": ["understanding", "generation"]}
    )
    node = next(n for n in compiled.nodes.values() if n.connector == connector and n.mix == mix)
    found = estimate(compiled, {}).nodes[node.name].estimate
    assert found.seconds == pytest.approx(40.0 + 8)
    assert found.memory == 650.0
    assert found.source == "1 earlier run"


def test_a_changed_component_is_scaled_by_its_operations(checkout: Path) -> None:
    earlier = graph(checkout, "earlier")
    write(earlier)
    timed(earlier, instruct=108.0)
    wide = graph(checkout, factors={"connector": ["linear", "q_former"]}, set={"text_decoder.dim": 128})
    found = estimate(wide, {}).nodes["instruct@linear-s0"].estimate
    assert found.source.endswith("similar runs")
    assert found.seconds > 2 * 108
    assert found.memory > 700


def test_without_earlier_runs_operations_are_counted_once_a_shape(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    count = operations._count

    def counting(work: Any) -> Any:
        counted.append(work.stage)
        return count(work)

    monkeypatch.setattr(operations, "_count", counting)
    compiled = graph(checkout, seeds=[0, 1, 2, 3])
    plan = estimate(compiled, {})
    shapes = [
        "encoder",
        "text_decoder",
        "image_decoder",
        *2 * ["align"],
        *2 * ["instruct"],
        *2 * ["evaluate"],
    ]
    assert sorted(counted) == sorted(shapes)  # of 48 nodes
    assert {node.estimate.source for node in plan.nodes.values()} == {"operations"}
    for node in plan.nodes.values():
        found = node.estimate
        assert (found.low, found.high) == pytest.approx((found.seconds / FACTOR, found.seconds * FACTOR))
        assert found.memory > 400
    estimate(compiled, {})  # and remembered in the checkout
    assert len(counted) == len(shapes)


def test_operations_grow_with_steps_and_with_what_trains(checkout: Path) -> None:
    def instruct(**settings: Any) -> Estimate:
        changes = {f"stages.instruct.{key}": value for key, value in settings.items()}
        made = graph(checkout, factors={"connector": ["linear", "q_former"]}, set=changes, seeds=[0])
        return estimate(made, {}).nodes["instruct@linear-s0"].estimate

    around = 8.0
    short, long = instruct(steps=100), instruct(steps=200)
    assert long.seconds - around == pytest.approx(2 * (short.seconds - around))
    frozen = instruct(steps=100, trainable=["connector"])
    assert frozen.seconds < short.seconds
    assert frozen.memory < short.memory


@pytest.mark.parametrize("budget", [5, 1_000_000])
def test_training_ends_with_its_budget_or_with_its_steps(checkout: Path, budget: int) -> None:
    tree = yaml.safe_load(BASE.read_text())
    tree["stages"]["instruct"]["steps"] = 1000
    base = graph(checkout).folder / "long.yaml"
    base.write_text(yaml.safe_dump(tree))
    budgets: list[dict[str, Any]] = [{}, {"budget": {"seconds": budget, "stages": ["instruct"]}}]
    whole, limited = (
        estimate(graph(checkout, base="long.yaml", **changes), {}).nodes["instruct@linear-generation-s0"]
        for changes in budgets
    )
    around = 8.0  # seconds of imports and validation
    assert whole.estimate.seconds > 5 + around
    assert limited.estimate.seconds == pytest.approx(min(whole.estimate.seconds, budget + around))


# -- all nodes -----------------------------------------------------------------------------------------------


def test_a_plan_counts_what_sharing_saves_and_what_is_left(checkout: Path) -> None:
    compiled = graph(checkout)
    timed(
        compiled,
        data=10,
        judge=5,
        encoder=40,
        text_decoder=30,
        image_decoder=20,
        align=15,
        instruct=60,
        evaluate=9,
    )
    early = ("data", "judge", "encoder", "text_decoder", "image_decoder")
    states = {name: NodeState("done" if n.stage in early else "stale") for name, n in compiled.nodes.items()}
    plan = estimate(compiled, states)
    # two connectors, two mixes, two seeds
    assert (plan.arms, len(plan.nodes), plan.nodes_alone) == (8, 5 + 4 + 8 + 8, 64)
    shared = 105 + 4 * 15 + 8 * 69
    assert plan.seconds_shared == pytest.approx(shared)
    assert plan.seconds_alone == pytest.approx(8 * (105 + 15 + 69))
    assert plan.seconds_left == pytest.approx(shared - 105)
    assert [node.stage for node in plan.critical_path] == ["align", "instruct", "evaluate"]
    assert plan.seconds_critical == pytest.approx(84)
    assert plan.wall(1) == pytest.approx(plan.seconds_left)
    assert plan.wall(100) == pytest.approx(84 * MACHINE.slower(8), rel=0.5)


def test_jobs_share_the_work_along_the_edges() -> None:
    diamond = {"a": (10.0, ()), "b": (20.0, ("a",)), "c": (30.0, ("a",)), "d": (5.0, ("b", "c"))}
    plan = plan_of(diamond)
    assert [plan.wall(jobs) for jobs in (1, 2, 3)] == pytest.approx([65.0, 45.0, 45.0])
    assert [node.name for node in plan.critical_path] == ["a", "c", "d"]
    assert plan.wall(2) == pytest.approx(plan.seconds_critical)


def test_what_has_most_behind_it_starts_first() -> None:
    chain = {
        "short": (10.0, ()),
        "first": (10.0, ()),
        "second": (10.0, ("first",)),
        "third": (10.0, ("second",)),
    }
    assert plan_of(chain | {"other": (10.0, ())}).wall(2) == pytest.approx(30.0)


def test_nodes_at_once_slow_each_other_as_measured() -> None:
    plan = plan_of({"a": (10.0, ()), "b": (20.0, ())}, slower=1.5)
    assert plan.wall(1) == pytest.approx(30.0)
    assert plan.wall(2) == pytest.approx(15.0 + 10.0)  # both for 15 s, then the rest of one alone


def test_what_is_done_takes_no_time() -> None:
    chain = {"a": (10.0, ()), "b": (20.0, ("a",)), "c": (30.0, ("b",))}
    plan = plan_of(chain, a="done", b="recordable")
    assert plan.wall(2) == plan.seconds_left == plan.seconds_critical == 30.0
    assert plan_of(chain, a="done", b="done", c="done").wall(2) == 0.0


def test_the_table_says_it_in_a_screen(checkout: Path) -> None:
    compiled = graph(checkout)
    timed(compiled, instruct=600.0)
    text = StringIO()
    render(estimate(compiled, {}), Console(file=text, width=80, highlight=False))
    said = text.getvalue()
    assert "25 nodes for 8 paths" in said
    assert "25 nodes instead of 64" in said
    row = next(line for line in said.splitlines() if line.startswith("instruct"))
    assert re.split(r" {2,}", row.strip()) == [
        *("instruct", "8", "0", "8", "10.0 min", "1 h 20 min", "700 MB", "its last run")
    ]
    assert "critical path  10 min" in said
    assert "--jobs 1" in said
    assert "--jobs 2" in said
    assert len(said.splitlines()) < 25
    assert "\N{HORIZONTAL ELLIPSIS}" not in said  # nothing is cut


def test_the_plan_for_programs_is_plain_json(checkout: Path) -> None:
    compiled = graph(checkout)
    timed(compiled)
    plan = estimate(compiled, {"data@all": NodeState("done")})
    tree = json.loads(json.dumps(plan.as_json(), allow_nan=False))
    assert tree["nodes"]["data@all"]["state"] == "done"
    assert tree["left"]["nodes"] == 24
    assert tree["jobs"]["1"]["seconds"] == pytest.approx(24.0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.7, "1 min"), (125, "2 min 5 s"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations_are_said_in_two_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_machine_is_measured_once_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".lab" / "probe.json"
    found = this_machine(file)
    assert 1e8 < found.rate < 1e15
    assert all(1.0 <= slower <= jobs for jobs, slower in found.contention.items())
    monkeypatch.setattr(machine, "_measure", lambda: MACHINE)
    again = this_machine(file)
    assert again.rate == pytest.approx(found.rate, rel=1e-3)
    assert again.contention == pytest.approx(found.contention, abs=0.01)
    late = machine.time.time() + 3601
    monkeypatch.setattr(machine.time, "time", lambda: late)
    assert this_machine(file) == MACHINE
