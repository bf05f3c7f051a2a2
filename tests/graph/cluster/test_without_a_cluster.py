"""What SLURM may say that a healthy cluster does not: its commands are played by small scripts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from graphs import Graph, needs, new_graph

from lab.errors import LabError
from lab.graph.cluster import batch, jobs
from lab.graph.cluster.slurm import states

BLOCKED = "a job that it waits for did not end well"
# a line of squeue, fields at the widths that were asked for
ROW = "printf '%-32s%-16s%-8s%-12s%-48s%-160s\\n'"


class Commands:
    """A folder of scripts, the only one on the PATH beside the shell's own.

    Args:
        folder: for them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.play("squeue", "")
        self.play("scancel", f'echo "$@" >> {folder}/cancelled')
        self.play("scontrol", "echo MaxArraySize = 1001")

    def play(self, command: str, script: str) -> None:
        file = self.folder / command
        file.write_text(f"#!/bin/bash\n{script}\n")
        file.chmod(0o755)

    def play_sbatch(self, refusals: str = "") -> None:
        """Accepts all, and remembers comments by id."""
        self.play(
            "sbatch",
            f'cd {self.folder}\n{refusals}\necho x >> count; id=$(wc -l < count); cat > "script$id"\n'
            'echo "$@" > "options$id"; sed "s/.*--comment=//; s/ .*//" "options$id" > "comment$id"; echo $id',
        )

    def play_squeue(self, *rows: tuple[str, str, int, str, str]) -> None:
        """Jobs: id, state, restarts, exit status, reason."""
        lines = [
            f'{ROW} {job} {state} {restarts} {status} "$(cat {self.folder}/comment{job})" "{reason}"'
            for job, state, restarts, status, reason in rows
        ]
        self.play("squeue", "\n".join(lines))

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """SLURM's commands without SLURM."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(jobs, "_PAUSE", 0.01)
    return Commands(folder)


@pytest.fixture
def graph(commands: Commands, tmp_path: Path) -> Graph:
    """One node."""
    graph = new_graph(tmp_path)
    graph.add("data")
    return graph


def test_without_slurm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    graph = new_graph(tmp_path)
    graph.add("data")
    with pytest.raises(LabError, match=r"SLURM's \w+ is not on the PATH: .* or run without --on slurm"):
        graph.submit()


def test_an_answer_that_gets_lost_does_not_submit_twice(graph: Graph, commands: Commands) -> None:
    commands.play_sbatch('trap "echo Socket timed out on send/recv operation >&2; exit 1" EXIT')
    commands.play_squeue(("1", "PENDING", 0, "0", "Priority"))
    assert graph.submit() == {"data": "1"}
    assert commands.read("count").count("x") == 1


def test_the_controller_is_asked_again(graph: Graph, commands: Commands) -> None:
    commands.play_sbatch(
        "[ -e asked ] || { touch asked; echo 'Unable to contact slurm controller' >&2; exit 1; }"
    )
    assert graph.submit() == {"data": "1"}


@pytest.mark.parametrize(
    ("slurm", "lab"),
    [
        (("PENDING", 0, "0", "Priority"), "pending (Priority)"),
        (("PENDING", 2, "0", "BeginTime"), "requeued 2 times (BeginTime)"),
        (("REQUEUE_HOLD", 0, "0", "launch failed requeued held"), "requeued (launch failed requeued held)"),
        (
            ("PENDING", 0, "0", "DependencyNeverSatisfied"),
            f"blocked ({BLOCKED})",
        ),
        (("RUNNING", 1, "0", "None"), "running"),
        (("COMPLETING", 0, "0", "None"), "running"),
        (("COMPLETED", 0, "0", "None"), "done"),
        (("FAILED", 0, "512", "NonZeroExitCode"), "failed (exit code 2)"),
        (("FAILED", 0, "9", "RaisedSignal:9"), "failed (exit code 137)"),
        (("FAILED", 0, "0", "BadConstraints"), "failed (BadConstraints)"),
        (("OUT_OF_MEMORY", 0, "0:125", "OutOfMemory"), "failed (out of memory)"),
        (("NODE_FAIL", 0, "1", "NodeDown"), "failed (its node was lost)"),
        (("TIMEOUT", 0, "0:15", "TimeLimit"), "timeout (time limit)"),
        (("CANCELLED", 0, "0", "None"), "cancelled"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_state_has_a_name(
    graph: Graph, commands: Commands, slurm: tuple[str, int, str, str], lab: str
) -> None:
    commands.play_sbatch()
    graph.submit()
    commands.play_squeue(("1", *slurm))
    assert str(states(graph.folder)["data"]) == lab


def test_a_job_of_somebody_else_with_our_id_is_not_ours(graph: Graph, commands: Commands) -> None:
    commands.play_sbatch()
    graph.submit()
    commands.play("squeue", f"{ROW} 1 RUNNING 0 0 '(null)' None; {ROW} 1 RUNNING 0 0 lab:another None")
    assert states(graph.folder)["data"].state == "unknown"


def test_accounting_or_a_receipt_knows_a_job_that_slurm_forgot(graph: Graph, commands: Commands) -> None:
    commands.play_sbatch()
    graph.submit()
    commands.play("sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    assert states(graph.folder)["data"].state == "unknown"
    commands.play("sacct", "echo '1|CANCELLED by 1000|0:0'")
    assert states(graph.folder)["data"].state == "cancelled"
    commands.play("sacct", "echo '1|FAILED|3:0'")
    assert str(states(graph.folder)["data"]) == "failed (exit code 3)"
    (graph.folder / ".lab" / "slurm" / "ended" / "1").write_text("0\n")
    assert states(graph.folder)["data"].state == "done"


def test_a_blocked_job_makes_way_for_a_new_one(graph: Graph, commands: Commands) -> None:
    commands.play_sbatch()
    graph.submit()
    commands.play_squeue(("1", "PENDING", 0, "0", "DependencyNeverSatisfied"))
    assert graph.submit() == {"data": "2"}
    assert commands.read("cancelled") == "--quiet 1\n"


def test_a_child_waits_for_the_newest_job_of_its_parent(graph: Graph, commands: Commands) -> None:
    commands.play_sbatch()
    graph.add("align@a", "data")
    assert graph.submit() == {"data": "1", "align@a": "2"}
    # the parent has failed, and SLURM is about to cancel the child
    commands.play_squeue(("1", "FAILED", 0, "256", "NonZeroExitCode"), ("2", "PENDING", 0, "0", "Dependency"))
    assert graph.submit() == {"data": "3", "align@a": "4"}
    assert "--dependency=afterok:3" in commands.read("options4")
    assert commands.read("cancelled") == "--quiet 2\n"


def test_seeds_that_make_no_array_are_jobs_of_their_own(graph: Graph, commands: Commands) -> None:
    commands.play_sbatch()
    graph.add("align@a-s0", "data")
    graph.add("align@a-s1", "data", resources=needs(memory="1G"))  # other needs
    graph.add("align@a-s5000", "data")  # SLURM has no such index
    graph.add("align@a-s7")  # other parents
    ids = graph.submit()
    assert len({job.partition("_")[0] for job in ids.values()}) == len(graph.tasks)
    assert not any("--array" in commands.read(f"options{job}") for job in ids.values())


def test_needs_reach_sbatch(graph: Graph, commands: Commands) -> None:
    commands.play_sbatch()
    big = {"cpus": 8, "gpus": 4, "memory": "64G", "nodes": 2, "tasks": 4, "partition": "long"}
    graph.add("data", resources=needs(**big, time="1-12"))
    graph.submit()
    options = commands.read("options1").split()
    wanted = (
        "--nodes=2 --ntasks-per-node=4 --cpus-per-task=8 --gres=gpu:4 --mem=64G --time=1-12 --partition=long"
    )
    assert set(wanted.split()) <= set(options)


@pytest.mark.parametrize(
    ("limit", "warning"), [("", 90), ("1", 20), ("2:30", 50), ("0:03:00", 60), ("30", 90), ("1-0", 90)]
)
def test_a_stage_is_told_before_its_time_is_up(limit: str, warning: int) -> None:
    """SLURM's minute is the shortest limit, and a warning at once would leave no time to work."""
    assert f"--signal=B:USR1@{warning}" in batch.options(needs(time=limit))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_script_is_one_for_bash(graph: Graph, commands: Commands, processes: int) -> None:
    commands.play_sbatch()
    graph.add("align@it's-s0", resources=needs(tasks=processes, strategy="ddp"))
    graph.add("align@it's-s1", resources=needs(tasks=processes, strategy="ddp"))
    graph.submit(["align@it's-s0", "align@it's-s1"])
    script = commands.read("script1")
    subprocess.run([shutil.which("bash") or "bash", "-n"], input=script, text=True, check=True)
    assert "LAB_STRATEGY=ddp" in script
