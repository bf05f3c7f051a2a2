"""Graphs of quick nodes on a real SLURM."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from graphs import Graph, needs, new_graph
from slurm import Cluster

from lab.errors import LabError
from lab.graph.cluster import batch, jobs
from lab.graph.cluster.slurm import cancel, states, watch

pytestmark = pytest.mark.usefixtures("struck")


@pytest.fixture(scope="module")
def struck(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """A graph whose machine was lost: starts first, for SLURM takes half a minute to notice."""
    graph = new_graph(tmp_path_factory.mktemp("struck"))
    graph.add("data", resources=needs(partition="spare"), steps=3000)
    graph.add("align@a", "data", resources=needs(partition="spare"))
    graph.submit()
    graph.until_started("data")
    cluster.kill_node("node4")
    graph.expect("data")  # of the next attempt, a short one; the first goes on alone
    return graph


def signal_usr1(job: str) -> None:
    """What SLURM does before the time limit and to make room."""
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)


def test_children_follow_their_parents_and_a_failure_stops_only_its_descendants(graph: Graph) -> None:
    graph.add("data")
    graph.add("align@good", "data", steps=5)
    graph.add("align@bad", "data", code=3)
    graph.add("instruct@good", "align@good")
    graph.add("instruct@bad", "align@bad")
    graph.add("compare", "instruct@good", "instruct@bad")
    graph.submit()
    ended = graph.until_ended()
    assert ended == {
        "data": "done",
        "align@good": "done",
        "align@bad": "failed",
        "instruct@good": "done",
        "instruct@bad": "cancelled",
        "compare": "cancelled",
    }
    assert graph.recorded() == ["data", "align@good", "instruct@good"]
    assert graph.events("instruct@good", "start")[0]["time"] > graph.events("align@good", "end")[0]["time"]
    now = states(graph.folder)
    assert now["align@bad"].reason == "exit code 3"
    assert now["compare"].reason == "a job that it waits for did not end well"
    assert "stage align@bad from step 0" in graph.log("align@bad")

    graph.expect("align@bad")
    assert graph.submit().keys() == {"align@bad", "instruct@bad", "compare"}
    assert set(graph.until_ended().values()) == {"done"}
    assert sorted(graph.recorded()) == sorted(graph.tasks)
    assert len(graph.events("instruct@good", "start")) == 1


def test_seeds_are_one_array_and_each_goes_its_own_way(graph: Graph) -> None:
    graph.add("data")
    for seed in (0, 1, 2):
        graph.add(f"align@linear-s{seed}", "data", steps=30, code=1 if seed == 1 else 0)
        graph.add(f"instruct@linear-even-s{seed}", "data", f"align@linear-s{seed}")
    graph.add("compare", "instruct@linear-even-s0", "instruct@linear-even-s2")
    ids = graph.submit()
    for stage in ("align@linear", "instruct@linear-even"):
        arrays = {ids[f"{stage}-s{seed}"].partition("_")[0] for seed in (0, 1, 2)}
        assert len(arrays) == 1
    graph.until_started("align@linear-s2")
    signal_usr1(ids["align@linear-s2"])  # the last element: its SLURM_JOB_ID is that of the whole array
    ended = graph.until_ended()
    assert ended.pop("align@linear-s1") == "failed"
    assert ended.pop("instruct@linear-even-s1") == "cancelled"
    assert set(ended.values()) == {"done"}
    assert [len(graph.events(f"align@linear-s{seed}", "start")) for seed in (0, 1, 2)] == [1, 1, 2]
    assert "from step 0" in graph.log("align@linear-s0")
    assert "instruct@linear-even-s2" in graph.log("instruct@linear-even-s2")


def test_a_stopped_stage_goes_back_to_the_queue_and_resumes(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "REQUEUES", 1)
    graph.add("warned", steps=30)
    graph.add("deaf", steps=30, deaf=True)  # the signal comes before its handler
    graph.add("requeued", steps=30)  # by the administrator
    graph.add("busy", code=74, until=1)  # another attempt works on it
    graph.add("compare", "warned", "deaf", "requeued", "busy")
    graph.add("hopeless", code=75)  # whatever SLURM does
    graph.add("child", "hopeless")
    ids = graph.submit()
    graph.until_started("warned", "deaf", "requeued")
    signal_usr1(ids["warned"])
    signal_usr1(ids["deaf"])
    subprocess.run(["scontrol", "requeue", ids["requeued"]], check=True, capture_output=True)
    now = graph.until(lambda now: now["warned"].state == "requeued")
    assert now["warned"].restarts == 1
    assert now["compare"].state == "pending"
    graph.expect("deaf")
    ended = graph.until_ended()
    assert (ended.pop("hopeless"), ended.pop("child")) == ("failed", "cancelled")
    assert len(graph.events("hopeless", "start")) == 2
    assert "given up after 1 returns to the queue" in graph.log("hopeless")
    assert set(ended.values()) == {"done"}
    stop, second = graph.events("warned", "stop")[0], graph.events("warned", "start")[1]
    assert second["step"] == stop["step"] > 0
    assert second["attempt"] == f"{ids['warned']}.1"
    assert graph.log("warned").count("stage warned from step") == 2  # the log of the first attempt stays
    assert "another attempt works on it; back to the queue" in graph.log("busy")
    assert sorted(graph.recorded()) == sorted(ended)


def test_a_second_call_adopts_what_is_in_the_queue(graph: Graph) -> None:
    graph.add("data", steps=40)
    for seed in (0, 1):
        graph.add(f"align@linear-s{seed}", "data")
    first = graph.submit()
    # killed before it could write down SLURM's last answer
    journal = graph.folder / ".lab" / "slurm" / "jobs.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + lines[-1][:40])
    with ThreadPoolExecutor() as pool:  # several people at once
        assert list(pool.map(lambda _: graph.submit(), range(3))) == [first] * 3
    graph.add("compare", "align@linear-s0", "align@linear-s1")
    second = graph.submit()
    assert {name: second[name] for name in first} == first
    assert set(graph.until_ended().values()) == {"done"}
    assert all(len(graph.events(name, "start")) == 1 for name in graph.tasks)
    assert graph.submit() == {}


def test_newer_code_replaces_what_waits_and_leaves_what_runs(graph: Graph) -> None:
    old = graph.code
    graph.add("data", steps=40)
    graph.add("align@linear", "data")
    first = graph.submit()
    graph.until_started("data")
    graph.newer_code()
    second = graph.submit()
    assert second["data"] == first["data"]
    assert second["align@linear"] != first["align@linear"]
    assert states(graph.folder)["data"].code == str(old)
    assert set(graph.until_ended().values()) == {"done"}
    assert [event["code"] for event in graph.events("data", "start")] == [str(old)]
    assert [event["code"] for event in graph.events("align@linear", "start")] == [str(graph.code)]


def test_a_child_that_starts_too_early_runs_nothing(graph: Graph) -> None:
    graph.add("data", steps=600)
    graph.add("align@linear", "data")
    ids = graph.submit()
    graph.until_started("data")
    # what SLURM does to a dependency on a job that it has forgotten
    subprocess.run(["scontrol", "update", f"JobId={ids['align@linear']}", "Dependency="], check=True)
    assert graph.until(lambda now: not now["align@linear"].live)["align@linear"].state == "failed"
    assert not graph.events("align@linear", "start")
    assert f"job {ids['data']}, which it needs, did not end well" in graph.log("align@linear")
    cancel(graph.folder)


def test_cancel_ends_what_was_named_and_what_depends_on_it(graph: Graph) -> None:
    graph.add("data")
    graph.add("align@a", "data", steps=600)
    graph.add("align@b", "data", steps=600)
    graph.add("instruct@a", "align@a")
    graph.submit()
    graph.until_started("align@a", "align@b")
    assert cancel(graph.folder, ["align@a"]) == ["align@a"]
    now = graph.until(lambda now: not now["instruct@a"].live and not now["align@a"].live)
    assert now["align@a"].state == now["instruct@a"].state == "cancelled"
    assert now["align@b"].state == "running"
    assert cancel(graph.folder) == ["align@b"]
    assert graph.until_ended()["align@b"] == "cancelled"
    with pytest.raises(LabError, match=r"no job of a node 'align@c' \(did you mean 'align@"):
        cancel(graph.folder, ["align@c"])
    assert graph.recorded() == ["data"]


def test_several_processes_stop_together_and_fail_together(graph: Graph) -> None:
    two = needs(tasks=2, strategy="ddp")
    graph.add("instruct@stopped", resources=two, steps=30)
    graph.add("instruct@wide", resources=needs(nodes=2, strategy="ddp"))
    graph.add("instruct@broken", resources=two, code=5, process=1)
    graph.add("instruct@busy", resources=two, code=74, process=0, until=1)
    ids = graph.submit()
    graph.until(lambda _: len(graph.events("instruct@stopped", "start")) == 2)
    signal_usr1(ids["instruct@stopped"])
    graph.until(lambda now: now["instruct@busy"].state == "requeued")
    graph.expect("instruct@busy")
    ended = graph.until_ended()
    assert ended.pop("instruct@broken") == "failed"
    assert states(graph.folder)["instruct@broken"].reason == "exit code 5"
    assert set(ended.values()) == {"done"}
    starts = graph.events("instruct@stopped", "start")
    assert sorted(event["process"] for event in starts) == ["0", "0", "1", "1"]
    assert {event["strategy"] for event in starts} == {"ddp"}
    # the first process was done with saving before the second, which could finish nevertheless
    assert len(graph.events("instruct@stopped", "stop")) == 2
    assert all(event["step"] > 0 for event in starts[2:])
    assert sorted(event["process"] for event in graph.events("instruct@wide", "start")) == ["0", "1"]
    assert graph.recorded().count("instruct@stopped") == 1


def test_the_controller_may_restart(graph: Graph, cluster: Cluster) -> None:
    graph.add("data", steps=30)
    graph.add("align@linear", "data")
    graph.submit()
    graph.until_started("data")
    cluster.stop_controller()
    with ThreadPoolExecutor() as pool:
        question = pool.submit(states, graph.folder)
        cluster.start_controller()
        assert question.result()["data"].state in ("running", "done")  # asked while nobody was there
    assert set(graph.until_ended().values()) == {"done"}
    assert all(len(graph.events(name, "start")) == 1 for name in graph.tasks)


def test_a_controller_that_stays_silent_is_one_clear_error(
    graph: Graph, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_PATIENCE", 1.0)
    cluster.stop_controller()
    graph.add("data")
    try:
        with pytest.raises(
            LabError, match=r"SLURM's controller does not answer .* give the same command again"
        ):
            graph.submit()
    finally:
        cluster.start_controller()
    monkeypatch.undo()
    graph.submit()
    assert graph.until_ended() == {"data": "done"}
    assert len(graph.events("data", "start")) == 1


def test_a_refused_job_names_its_node_and_leaves_the_others(graph: Graph) -> None:
    graph.add("data")
    graph.add("align@a", "data", resources=needs(partition="batc"))
    with pytest.raises(
        LabError,
        match=r"yaml: resources of align@a: .*'batc' \(did you mean 'batch'\?\); have batch, spare, urgent;",
    ):
        graph.submit()
    assert graph.until_ended() == {"data": "done"}
    graph.resources["align@a"] = needs(memory="900G")
    with pytest.raises(LabError, match=r"resources of align@a: SLURM refuses the job: .*not available"):
        graph.submit()
    graph.resources["align@a"] = needs(gpus=1)
    graph.submit()
    assert graph.until_ended() == {"data": "done", "align@a": "done"}


def test_watching_tells_every_change_until_all_have_ended(graph: Graph) -> None:
    graph.add("data", steps=5)
    graph.add("align@a", "data", code=1)
    graph.submit()
    told: list[tuple[str, str]] = []
    last = watch(graph.folder, lambda new: told.extend((name, str(new[name])) for name in new), seconds=0.1)
    assert {name: state.state for name, state in last.items()} == {"data": "done", "align@a": "failed"}
    assert told[-1] == ("align@a", "failed (exit code 1)")
    assert len(told) == len(set(told))  # nothing twice


def test_interrupting_the_watch_leaves_the_jobs(graph: Graph, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    graph.add("data", steps=5)
    graph.submit()
    with pytest.raises(KeyboardInterrupt):
        watch(graph.folder, interrupt)
    assert "the jobs go on" in capsys.readouterr().err
    assert graph.until_ended() == {"data": "done"}


def test_a_lost_node_costs_an_attempt_and_no_more(struck: Graph, cluster: Cluster) -> None:
    struck.until_started("data", times=2)
    cluster.start_node("node4")
    assert set(struck.until_ended().values()) == {"done"}
    job = states(struck.folder)["data"].job
    first, second = struck.events("data", "start")
    assert (first["attempt"], second["attempt"]) == (f"{job}.0", f"{job}.1")
    assert (first["machine"], second["machine"]) == ("node4", "node5")
    assert struck.recorded() == ["data", "align@a"]
