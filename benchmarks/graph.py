"""What the graph engine costs beyond the work of nodes, and what DVC itself costs for the same graphs.

    .venv/bin/python benchmarks/graph.py [MEASURE ...] [--repeats 3] [--write]

Everything is measured in a copy of the lab's code in a temporary folder, with a git and DVC repository of its
own: on ablations of about 100, 300 and 1000 nodes whose stages are replaced by a shell script that writes an
output of 20 kB and metrics, so that what is left is the engine. All is measured several times over and
medians count. Seconds of processor time where it says CPU, otherwise of the clock.

`--write` replaces the tables in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from page import ROOT, checkout, machine, table, write_between

PAGE = ROOT / "docs" / "benchmarks.md"
LEVELS = {100: (4, 2), 300: (8, 3), 1000: (28, 3)}  # nodes -> levels of one factor, and seeds
BURN = 3.0  # seconds of processor time of a node that only computes

QUICK = """\
out=$1; numbers=$2
rm -rf "$out"; mkdir -p "$out"
echo "$out" > "$out/node.json"
head -c 20000 /dev/zero > "$out/weights"; echo "$out" >> "$out/weights"
if [ -n "$numbers" ]; then mkdir -p "$(dirname "$numbers")"; echo "{\\"score\\": 1}" > "$numbers"; fi
"""
# in the place of `lab` for DVC, which runs the command that is recorded: `lab stage STAGE@LABEL`
STAND_IN = """\
#!/bin/sh
place=$(echo "$2" | tr @ /)
exec sh {quick} "output/$place" "metrics/$place.json"
"""


@dataclass(frozen=True)
class Cost:
    """Of a command: seconds of processor time and of the clock."""

    cpu: float
    wall: float


class Study:
    """An ablation of about so many nodes in a checkout of its own.

    Args:
        folder: to make it in.
        size: 100, 300 or 1000.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.checkout, self.name = folder / f"lab{size}", f"nodes{size}"
        checkout(self.checkout)
        shutil.copyfile(ROOT / "params.yaml", self.checkout / "params.yaml")
        (self.checkout / "quick.sh").write_text(QUICK)
        programs = self.checkout / "bin"
        programs.mkdir()
        (programs / "lab").write_text(STAND_IN.format(quick=self.checkout / "quick.sh"))
        (programs / "lab").chmod(0o755)
        levels, seeds = LEVELS[size]
        self.folder = self.checkout / "experiments" / "ablations" / self.name
        self.folder.mkdir(parents=True)
        declaration = {
            "base": "params.yaml",
            "factors": {
                "connector": ["linear", "q_former", "perceiver"],
                "mix": ["understanding", "generation"],
                "weight": {
                    "key": "stages.instruct.image_weight",
                    "levels": [round(0.1 * (level + 1), 1) for level in range(levels)],
                },
            },
            "seeds": list(range(seeds)),
            "replicate_from": "align",
        }
        (self.folder / "ablation.yaml").write_text(yaml.safe_dump(declaration, sort_keys=False))
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.checkout),
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "DVC_NO_ANALYTICS": "true",
            "LAB_TRACKING": "off",
            "OMP_NUM_THREADS": "1",
        }
        for command in (["git", "init", "-q", "."], [sys.executable, "-m", "dvc", "init", "-q"]):
            subprocess.run(command, cwd=self.checkout, env=self.environment, check=True)
        self.lab("graph", "compile", self.name)

    def lab(self, *words: str) -> Cost:
        """Run a command of the lab."""
        return timed([sys.executable, "-m", "lab", *words], self.checkout, self.environment)

    def dvc(self, *words: str) -> Cost:
        """Run a command of DVC in the ablation's folder; stages are the shell script."""
        path = os.pathsep.join([str(self.checkout / "bin"), self.environment["PATH"]])
        return timed([sys.executable, "-m", "dvc", *words], self.folder, {**self.environment, "PATH": path})

    def engine(self, what: str, jobs: int = 1) -> dict[str, float]:
        """Have a process of its own do and time something; see `worker`."""
        command = [sys.executable, __file__, "--worker", what, str(jobs)]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{what}: {done.stdout[-500:]}{done.stderr[-1500:]}")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def forget(self, *, cache: bool) -> None:
        """Remove outputs and records, and what DVC's cache has of them where that is asked for."""
        for place in ("output", "metrics", ".lab"):
            shutil.rmtree(self.folder / place, ignore_errors=True)
        for lock in self.folder.rglob("dvc.lock"):
            lock.unlink()
        if cache:
            shutil.rmtree(self.checkout / ".dvc" / "cache", ignore_errors=True)


def timed(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Cost:
    """Run a command; what it and all that it waits for cost."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {said.decode()[-1500:]}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - began)


# -- what runs in a process of its own -----------------------------------------------------------------------


def worker(what: str, jobs: int) -> None:
    """Do something in the ablation of the current folder; print what it cost this process, not its children.

    Args:
        what: `states`, cold and warm; `run`, with the shell script in the place of stages.
        jobs: nodes at once.
    """
    import dvc.repo  # noqa: F401  its import is no cost of a node

    from lab.graph.ablation import read_ablation
    from lab.graph.compile import compile_graph
    from lab.graph.dependencies import tasks_of
    from lab.graph.engine import states
    from lab.graph.runner import run
    from lab.graph.task import Pipeline

    graph = compile_graph(read_ablation(Path("ablation.yaml").resolve()))
    if what == "states":
        (graph.folder / ".lab" / "hashes.json").unlink(missing_ok=True)
        seconds = []
        for _ in ("cold", "warm"):
            began = time.monotonic()
            found = states(graph)
            seconds.append(time.monotonic() - began)
        if any(state.state != "done" for state in found.values()):
            raise SystemExit("not all is done")
        print(json.dumps({"cold": seconds[0], "warm": seconds[1], "nodes": len(found)}))
        return
    tasks = tasks_of(graph)
    script = graph.folder.parents[2] / "quick.sh"
    quick = {
        name: replace(task, command=f"sh {script} {' '.join(task.outs)}") for name, task in tasks.items()
    }
    began, cpu = time.monotonic(), time.process_time()
    waiting = {name for name, state in states(graph).items() if state.state != "done"}
    code = run(graph.folder, lambda recorder: Pipeline(quick, waiting), [], jobs)
    cost = {"cpu": time.process_time() - cpu, "wall": time.monotonic() - began}
    if code:
        raise SystemExit("a node failed")
    print(json.dumps(cost | {"nodes": len(tasks)}))


# -- measures ------------------------------------------------------------------------------------------------

Rows = list[list[str]]


class Bench:
    """The studies that measures share.

    Args:
        folder: for them.
        repeats: how often what is compared is measured.
    """

    def __init__(self, folder: Path, repeats: int) -> None:
        self.folder, self.repeats = folder, repeats
        self._studies: dict[int, Study] = {}

    def study(self, size: int) -> Study:
        """An ablation in which nothing has run yet, or everything."""
        if size not in self._studies:
            self._studies[size] = Study(self.folder, size)
        return self._studies[size]

    def full(self, size: int) -> Study:
        """An ablation in which everything has run."""
        study = self.study(size)
        study.engine("run", 2)
        return study


def nodes(bench: Bench) -> Rows:
    """Processor time of runner and recorder a node."""
    rows = [["nodes", "executed, ms", "from DVC's cache, ms", "up to date, ms"]]
    for size in (100, 300):
        study = bench.study(size)
        costs: dict[str, list[float]] = {"executed": [], "restored": [], "unchanged": []}
        for _ in range(bench.repeats):
            study.forget(cache=True)
            for kind in costs:
                if kind == "restored":
                    study.forget(cache=False)
                cost = study.engine("run", 2)
                costs[kind].append(1000 * cost["cpu"] / cost["nodes"])
        rows.append([f"{cost['nodes']:.0f}", *(f"{median(found):.1f}" for found in costs.values())])
    return rows


def status(bench: Bench) -> Rows:
    """States of all nodes, as `lab graph status` finds them, and DVC's."""
    rows = [["nodes", "states, cold, s", "states, warm, s", "`lab graph status`, s", "`dvc status`, s"]]
    for size in (100, 300, 1000):
        study = bench.full(size)
        found = [study.engine("states") for _ in range(bench.repeats)]
        lab = [study.lab("graph", "status", study.name).wall for _ in range(bench.repeats)]
        dvc = [study.dvc("status").wall for _ in range(bench.repeats if size < 1000 else 1)]
        cold, warm = (median(one[kind] for one in found) for kind in ("cold", "warm"))
        rows.append(
            [
                f"{found[0]['nodes']:.0f}",
                f"{cold:.2f}",
                f"{warm:.2f}",
                f"{median(lab):.2f}",
                f"{median(dvc):.1f}",
            ]
        )
    return rows


def commands(bench: Bench) -> Rows:
    """Commands on an ablation of 300 nodes in which everything has run, beside DVC's."""
    study = bench.full(300)
    rows = [["command", "CPU, s", "clock, s"]]
    for title, call in {
        "`lab graph compile`": lambda: study.lab("graph", "compile", study.name),
        "`lab graph plan`": lambda: study.lab("graph", "plan", study.name),
        "`lab graph status`": lambda: study.lab("graph", "status", study.name),
        "`lab graph run`, nothing to do": lambda: study.lab("graph", "run", study.name),
        "`dvc status`": lambda: study.dvc("status"),
        "`dvc repro`, nothing to do": lambda: study.dvc("repro"),
    }.items():
        call()  # what is remembered from call to call is
        costs = [call() for _ in range(bench.repeats)]
        rows.append(
            [title, f"{median(cost.cpu for cost in costs):.2f}", f"{median(cost.wall for cost in costs):.2f}"]
        )
    return rows


def alternatives(bench: Bench) -> Rows:
    """What a node costs where each is a `dvc repro` of its own, beside the lab's single recorder."""
    study = bench.study(100)
    rows = [["engine", "nodes", "CPU a node, ms"]]
    study.forget(cache=True)
    cost = study.engine("run", 2)
    rows.append(
        ["one recorder, all nodes", f"{cost['nodes']:.0f}", f"{1000 * cost['cpu'] / cost['nodes']:.0f}"]
    )
    study.forget(cache=True)
    names = ["data@all", "judge@all", "encoder@all", "text_decoder@all", "image_decoder@all"]
    each = [study.dvc("--wait-for-lock", "repro", "-s", f"nodes/all/dvc.yaml:{name}") for name in names]
    rows.append(
        ["`dvc repro -s` of each node", str(len(names)), f"{1000 * median(one.cpu for one in each):.0f}"]
    )
    again = [study.dvc("--wait-for-lock", "repro", "-s", f"nodes/all/dvc.yaml:{name}") for name in names]
    rows.append(["the same, up to date", str(len(names)), f"{1000 * median(one.cpu for one in again):.0f}"])
    return rows


BURNING = """\
import hashlib, sys, time
begin, state = time.process_time(), b""
for _ in range({rounds}):
    state = hashlib.sha256(state).digest()
open(f"output/{{sys.argv[1]}}", "wb").write(state)
"""


def speed(bench: Bench) -> Rows:
    """Eight nodes of one thread each, which only compute: serial, two at once, and without the lab."""
    folder = bench.folder / "speed"
    checkout(folder)
    shutil.copyfile(ROOT / "experiments" / "ablations" / "smoke" / "params.yaml", folder / "params.yaml")
    (folder / "burn.py").write_text(BURNING.format(rounds=_rounds(BURN)))
    (folder / "output").mkdir()
    names = [f"node{number}" for number in range(8)]
    stages = {name: {"cmd": f"python burn.py {name}", "outs": [f"output/{name}"]} for name in names}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PATH": path}
    for command in (["git", "init", "-q", "."], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, env=environment, check=True)
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(bench.repeats):
        for jobs in (1, 2):
            lab = [sys.executable, "-m", "lab", "repro", "--jobs", str(jobs)]
            bare = ["sh", "-c", f"echo {' '.join(names)} | xargs -n 1 -P {jobs} python burn.py"]
            for title, command in (("`lab repro --jobs`", lab), ("`xargs -P`", bare)):
                for left in ("dvc.lock", ".dvc/cache"):
                    place = folder / left
                    shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(
                        missing_ok=True
                    )
                cost = timed(command, folder, environment)
                seconds.setdefault((title, jobs), []).append(cost.wall)
    rows = [["", "one at a time, s", "two at once, s", "speed-up"]]
    for title in ("`lab repro --jobs`", "`xargs -P`"):
        one, two = (median(seconds[title, jobs]) for jobs in (1, 2))
        rows.append([title, f"{one:.1f}", f"{two:.1f}", f"{one / two:.2f}"])
    return rows


def _rounds(seconds: float) -> int:
    """Rounds of hashing that take so long here."""
    import hashlib

    state, rounds, began = b"", 200_000, time.process_time()
    for _ in range(rounds):
        state = hashlib.sha256(state).digest()
    return int(rounds * seconds / (time.process_time() - began))


def sharing(bench: Bench) -> Rows:
    """A graph of 3 x 3 x 3 arms that really train, tiny, against arms that run alone."""
    folder = bench.folder / "sharing"
    checkout(folder)
    base = yaml.safe_load((ROOT / "experiments" / "ablations" / "smoke" / "params.yaml").read_text())
    base |= {"root": ".", "data": {"train_scenes": 80, "validation_scenes": 40, "test_scenes": 40}}
    base["mixes"]["even"] = {"caption": 1, "text_to_image": 1}
    base["stages"]["evaluate"] = dict.fromkeys(base["stages"]["evaluate"], 6)
    (folder / "params.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    declaration: dict[str, Any] = {
        "base": "params.yaml",
        "factors": {
            "connector": ["linear", "q_former", "perceiver"],
            "mix": ["understanding", "generation", "even"],
            "weight": {"key": "stages.instruct.image_weight", "levels": [0.5, 1.0, 2.0]},
        },
    }
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "LAB_TRACKING": "off",
        "OMP_NUM_THREADS": "1",
        "DVC_SITE_CACHE_DIR": str(bench.folder / "site"),
    }
    for command in (["git", "init", "-q", "."], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, env=environment, check=True)

    def ran(name: str, content: Mapping[str, Any]) -> Cost:
        place = folder / "experiments" / "ablations" / name
        place.mkdir(parents=True)
        (place / "ablation.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        shutil.rmtree(folder / ".dvc" / "cache", ignore_errors=True)  # alone is without what others made
        return timed([sys.executable, "-m", "lab", "graph", "run", name, "--jobs", "1"], folder, environment)

    def planned(name: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "lab", "graph", "plan", name, "--json"]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        return dict(json.loads(done.stdout))

    place = folder / "experiments" / "ablations" / "whole"
    place.mkdir(parents=True)
    (place / "ablation.yaml").write_text(yaml.safe_dump(declaration, sort_keys=False))
    plan = planned("whole")
    shutil.rmtree(place)
    arms = [("linear", "understanding", 0.5), ("q_former", "generation", 1.0), ("perceiver", "even", 2.0)]
    alone = []
    for connector, mix, weight in arms:
        one = {
            **declaration,
            "design": "none",
            "arms": [
                {"connector": connector, "mix": mix, "weight": f"image_weight{weight:g}".replace(".", "_")}
            ],
        }
        alone.append(ran(f"alone_{connector}", one))
    whole = ran("whole", declaration)
    after = planned("whole")
    rows = [["", "nodes", "share of arms run alone"]]
    nodes_share = plan["shared"]["nodes"] / plan["alone"]["nodes"]
    rows.append(["nodes", f"{plan['shared']['nodes']} of {plan['alone']['nodes']}", f"{nodes_share:.0%}"])
    for title, found in (("predicted before it ran", plan), ("by the times of its nodes", after)):
        share = found["shared"]["seconds"] / found["alone"]["seconds"]
        rows.append([title, "", f"{share:.0%}"])
    cpu = whole.cpu / (27 * sum(cost.cpu for cost in alone) / len(alone))
    rows.append(["measured, CPU of the whole graph against 27 times that of an arm alone", "", f"{cpu:.0%}"])
    return rows


MEASURES: dict[str, tuple[str, Callable[[Bench], Rows]]] = {
    "nodes": ("Processor time of the engine a node", nodes),
    "status": ("What is up to date", status),
    "commands": ("Commands on an ablation of 300 nodes", commands),
    "alternatives": ("One recorder, or `dvc repro` of each node", alternatives),
    "speed": ("Two nodes at once", speed),
    "sharing": ("A graph of 3 x 3 x 3 arms against its arms run alone", sharing),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measures", metavar="MEASURE", nargs="*", help=f"of {', '.join(MEASURES)}; all")
    parser.add_argument("--repeats", type=int, default=3, help="of what is compared (%(default)s)")
    parser.add_argument("--write", action="store_true", help=f"the tables to {PAGE.relative_to(ROOT)}")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], int(args.worker[1]))
        return
    if unknown := set(args.measures) - set(MEASURES):
        parser.error(f"no measure {', '.join(sorted(unknown))}; have {', '.join(MEASURES)}")
    folder = Path(tempfile.mkdtemp(prefix="lab-graph-"))
    bench = Bench(folder, args.repeats)
    for name in args.measures or MEASURES:
        title, measure = MEASURES[name]
        text = table(measure(bench))
        print(f"{title}\n\n{text}\n", flush=True)
        if args.write:
            write_between(
                PAGE, (f"<!-- {name}: begin -->", f"<!-- {name}: end -->"), f"{machine()}.\n\n{text}"
            )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
