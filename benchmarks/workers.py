"""Many workers on one study, some of them killed: is any trial lost, doubled, added or stuck?

    .venv/bin/python benchmarks/workers.py [journal] [postgres] [--trials 500] [--kills 8] [--write]

Trials do nothing but report and give numbers, so that workers meet at the storage as often as they can. While
they are at it, workers are killed with SIGKILL at random moments; others take their places and go on with
their trials. At the end the storage has to hold exactly the trials that were asked for, all complete, with
settings of their own, and every one of them worked on once, but for one more time a kill.

`--write` replaces the table in docs/reliability.md. PostgreSQL is a server of its own on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from page import ROOT, machine, table, write_between

sys.path.insert(0, str(ROOT / "tests" / "servers"))

PAGE = ROOT / "docs" / "reliability.md"
MARKS = "<!-- workers: begin -->", "<!-- workers: end -->"
DECLARATION = """\
objectives: {understanding/vqa: maximize}
sampler: random
pruner: none
space:
  stages.instruct.learning_rate.connector: {log: [3.0e-4, 3.0e-3]}
"""
BEGIN = """\
import json, os, sys
from pathlib import Path
from lab.search import study
from lab.search.worker import Objective

def toy(settings, report, rungs):
    rate = settings["stages.instruct.learning_rate.connector"]
    with open("log", "a") as log:
        log.write(json.dumps({"pid": os.getpid(), "rate": rate}) + "\\n")
    for step in (1, 2, 3):
        report(step, rate * step)
    return {"understanding/vqa": rate}

if __name__ == "__main__":
    study.conclude = lambda trials, folder: None
    study.run("toy.yaml", int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], objective=Objective(toy))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("storages", nargs="*", default=["journal", "postgres"], help="journal, postgres")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    rows = []
    for kind in args.storages:
        with storage(kind) as url, tempfile.TemporaryDirectory() as scratch:
            rows.append([kind, *map(str, stress(Path(scratch), url, args))])
        print(rows[-1], flush=True)
    heads = ["storage", "workers", "trials", "kills", "lost", "doubled", "added", "stuck", "begun again", "s"]
    text = f"{machine()}.\n\n{table([heads, *rows])}"
    print(text)
    if args.write:
        write_between(PAGE, MARKS, text)


@contextmanager
def storage(kind: str) -> Iterator[str]:
    """An empty one; "" for the default of several workers."""
    if kind == "journal":
        yield ""
        return
    from postgres import temporary_postgres

    with ExitStack() as stack:
        yield stack.enter_context(temporary_postgres()).new_database()


def stress(folder: Path, url: str, args: argparse.Namespace) -> list[Any]:
    """One study from beginning to end."""
    (folder / "toy.yaml").write_text(DECLARATION)
    (folder / "begin.py").write_text(BEGIN)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    url = url or f"journal:///{folder}/.lab/optuna.journal"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LAB_TRACKING": "off", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "begin.py", str(args.trials), str(args.workers), url]
    start = time.monotonic()
    running = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    killed = kill_at_random(folder / "log", running, args)
    running.wait()
    seconds = time.monotonic() - start
    assert running.returncode == 0, running.returncode
    return [args.workers, args.trials, killed, *judge(folder, url, args.trials), f"{seconds:.0f}"]


def kill_at_random(log: Path, running: subprocess.Popen[bytes], args: argparse.Namespace) -> int:
    """Kills whoever has begun a trial last, at moments spread over the study; how many that were."""
    draw, killed = random.Random(args.seed), 0
    moments = sorted(draw.randrange(10, args.trials - 10) for _ in range(args.kills))
    while running.poll() is None and moments:
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) >= moments[0]:
            moments.pop(0)
            time.sleep(draw.random() * 0.05)
            with suppress(ProcessLookupError):
                os.kill(json.loads(lines[-1])["pid"], signal.SIGKILL)
                killed += 1
        time.sleep(0.01)
    return killed


def judge(folder: Path, url: str, wanted: int) -> list[int]:
    """Trials that are lost, doubled, added and stuck, and how many were begun more than once."""
    import optuna

    from lab.search.storage import open_storage

    opened = open_storage(url)
    (name,) = optuna.get_all_study_names(opened)
    trials = optuna.load_study(study_name=name, storage=opened).trials
    states = Counter(trial.state.name for trial in trials)
    stuck = sum(count for state, count in states.items() if state != "COMPLETE")
    doubled = len(trials) - len({str(trial.params) for trial in trials})
    begun = Counter(json.loads(line)["rate"] for line in (folder / "log").read_text().splitlines())
    again = sum(1 for count in begun.values() if count > 1)
    lost = wanted - len({trial.number for trial in trials if trial.state.name == "COMPLETE"})
    return [lost, doubled, max(0, len(trials) - wanted), stuck, again]


if __name__ == "__main__":
    main()
