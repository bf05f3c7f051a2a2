"""Fault injection: what becomes of a graph when runners, nodes, disks and files fail.

    .venv/bin/python benchmarks/faults.py [SCENARIO ...] [--trials N] [--seed 0] [--write]

Every trial is a git and DVC repository of its own in a temporary folder, with a copy of the lab's code and a
graph of quick nodes, which `lab repro` runs. A node's steps are chained by hashes, so its output follows from
every step, from its settings and from its inputs. After the faults of a trial the same command is given until
the graph is complete; then all of this has to hold, or the trial has failed:

- every output, every metrics file and every entry of dvc.lock is that of an undisturbed run, byte for byte;
- `dvc repro` finds nothing to do, and git sees no file that should not be there;
- every object in DVC's cache has the hash that its name says;
- no process, no claim, no resumable state and no unfinished output is left;
- no more steps were repeated than lie between two checkpoints, for each node that was killed.

`--write` replaces the table in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import atexit
import random
import shutil
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from injection import files, kills, on_slurm, rivals, training
from injection.laboratory import Laboratory, Outcome, Scenario, Skipped
from page import ROOT, machine, table, write_between

PAGE = ROOT / "docs" / "reliability.md"
MARKS = "<!-- faults: begin -->", "<!-- faults: end -->"
HEAD = ["fault", "trials", "faults", "failed", "steps in vain", "back at work, median s", "worst s"]

SCENARIOS: dict[str, tuple[str, int, Scenario]] = {
    "runner": ("runner killed at random moments", 20, kills.at_random(kills.kill_runner)),
    "node": ("a node killed at random moments", 20, kills.at_random(kills.kill_node)),
    "both": ("runner and a node killed together", 12, kills.at_random(kills.kill_both)),
    "everything": ("every process killed, guard included", 12, kills.at_random(kills.kill_everything)),
    "eight": ("runner killed with eight nodes at work", 8, kills.with_eight_at_work),
    "resume": ("killed again in the first step after a resume", 12, kills.after_resume),
    "checkpoint": (
        "a node killed while it writes a checkpoint",
        12,
        kills.while_there_is(".lab/work/*/last.*.partial"),
    ),
    "publish": ("a node killed while it publishes", 10, kills.while_there_is("output/.*.partial/weights")),
    "record": ("runner killed while it writes dvc.lock", 10, kills.while_it_writes("dvc.lock", 4)),
    "busy": (
        "runner killed while DVC notes what it works on",
        10,
        kills.while_it_writes(".dvc/tmp/rwlock", 12),
    ),
    "sigterm": ("SIGTERM to the runner", 8, rivals.asked(signal.SIGTERM)),
    "interrupt": ("Ctrl-C once", 8, rivals.asked(signal.SIGINT)),
    "twice": (
        "Ctrl-C twice, slow nodes",
        6,
        rivals.asked(signal.SIGINT, signal.SIGINT, linger="20"),
    ),
    "two": ("two runners on one graph", 100, rivals.two_runners),
    "rivals": ("32 attempts at one node of a new repository", 8, rivals.many_attempts),
    "paused": ("a node paused beyond its lease", 20, rivals.paused),
    "flip": ("a bit flipped in an output", 15, files.flipped(in_cache=False)),
    "flips": ("a bit flipped in an output and in DVC's cache", 15, files.flipped(in_cache=True)),
    "cache": ("outputs lost, a bit flipped in DVC's cache", 15, files.lost_outputs),
    "full": ("disk full", 15, files.full_disk),
    "edited": ("code edited while nodes wait", 10, files.edited),
    "slurmd": ("daemon of a SLURM node killed", 4, on_slurm.on_slurm(on_slurm.kill_daemon)),
    "machine": ("a SLURM node lost with all that ran on it", 4, on_slurm.on_slurm(on_slurm.lose_machine)),
    "slurmctld": ("SLURM's controller killed", 4, on_slurm.on_slurm(on_slurm.kill_controller)),
    "training": ("`lab stage` killed while it trains", 20, training.trained(signal.SIGKILL)),
    "preempted": ("SIGTERM to `lab stage` while it trains", 10, training.trained(signal.SIGTERM)),
}


@dataclass
class Row:
    """The outcomes of one scenario."""

    title: str
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: str = ""

    def cells(self) -> list[str]:
        """Of the table."""
        if self.skipped:
            return [self.title, f"skipped: {self.skipped}", *["-"] * 5]
        recovery = [seconds for one in self.outcomes for seconds in one.recovery]
        lost, faults = sum(one.lost for one in self.outcomes), sum(one.faults for one in self.outcomes)
        allowed = sum(one.allowed for one in self.outcomes)
        return [
            self.title,
            str(len(self.outcomes)),
            str(faults),
            str(sum(bool(one.problems) for one in self.outcomes)),
            f"{lost} of {allowed}" if allowed else "0" if not lost else f"{lost} of 0",
            f"{statistics.median(recovery):.1f}" if recovery else "-",
            f"{max(recovery):.1f}" if recovery else "-",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", metavar="SCENARIO", nargs="*", help=f"of {', '.join(SCENARIOS)}; all")
    parser.add_argument("--trials", type=int, help="of each scenario, instead of its own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"the table to {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    if unknown := set(args.scenarios) - set(SCENARIOS):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; have {', '.join(SCENARIOS)}")
    folder = Path(tempfile.mkdtemp(prefix="lab-faults-"))
    laboratory, rows = Laboratory(folder), {}
    atexit.register(laboratory.at_end.close)
    for name in args.scenarios or SCENARIOS:
        title, trials, scenario = SCENARIOS[name]
        rows[name] = row = Row(title)
        for number in range(args.trials or trials):
            try:
                outcome = scenario(laboratory, random.Random(f"{name} {args.seed} {number}"))
            except Skipped as reason:
                row.skipped = str(reason)
                break
            row.outcomes.append(outcome)
            for problem in outcome.problems:
                print(f"{name}, trial {number}: {problem}", file=sys.stderr, flush=True)
        print(f"| {' | '.join(row.cells())} |", file=sys.stderr, flush=True)
        if args.write:
            write_between(PAGE, MARKS, f"{machine()}.\n\n{table([HEAD, *_written(row)])}")
    print(table([HEAD, *(row.cells() for row in rows.values())]))
    if any(outcome.problems for row in rows.values() for outcome in row.outcomes):
        raise SystemExit(f"what is left of the failed trials: {folder}")
    shutil.rmtree(folder)


def _written(row: Row) -> list[list[str]]:
    """The rows of the page, with this one in its place."""
    text = PAGE.read_text().partition(MARKS[0])[2].partition(MARKS[1])[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    known = {cells[0]: cells for cells in lines[2:]} | {row.title: row.cells()}
    return [known[title] for title, _, _ in SCENARIOS.values() if title in known]


if __name__ == "__main__":
    main()
