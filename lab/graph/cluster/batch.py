"""The script of a SLURM job: runs a node's stage, records it, and goes back to the queue where that is due.

Exit codes of a stage that put the job back, a bounded number of times: 75, it was told to stop and saved its
state; 74, a living attempt has its place. The signal that tells it to stop, USR1, reaches the script, which
passes it on to the stage, or to srun where a node has several processes.

What a job ends with, it leaves in a file called after the job, its receipt. A child asks for those of its
parents when it starts: SLURM counts a dependency on a job that it has forgotten as met.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.graph.ablation import Resources
    from lab.graph.task import Task

REQUEUES = 20  # times that a job goes back to the queue by itself
WARNING = 90  # seconds before the time limit at which a stage is told to stop
_BUSY = 10  # seconds before a job goes back to the queue because another attempt has its place

# $job is not $SLURM_JOB_ID, which of an array's last element is that of the whole array, and `scontrol
# requeue` would put all of it back. `wait` returns when a signal comes, so it is called until none came. A
# stage that USR1 finds without its handler dies of it, with 138. TERM means that SLURM ends the job, for
# its own reasons or the person's: whether it comes again is then SLURM's business.
_SCRIPT = """\
#!/bin/bash
# Submitted by `lab graph run --on slurm`: a node of an ablation graph, or several that differ in the seed.
child= noted= warned= ended=
trap 'noted=1 warned=1; [ -z "$child" ] || kill -USR1 "$child"' USR1
trap 'noted=1 ended=1' TERM
case "${{SLURM_ARRAY_TASK_ID:-}}" in
{cases}
esac
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
job=${{job:-$SLURM_JOB_ID}}
restarts=${{SLURM_RESTART_COUNT:-0}}
receipt={receipts}/$job
export LAB_VERDICT=$receipt.$restarts
export LAB_ATTEMPT=$SLURM_JOB_ID.$restarts
export PATH={programs}:$PATH
export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cpus}}}
{strategy}rm -f "$receipt" "$LAB_VERDICT"

finish() {{  # where two attempts of a job live, as one was lost from sight, the one that ended well counts
    [ "$1" -eq 0 ] || [ "$(cat "$receipt" 2>&1)" != 0 ] || exit "$1"
    echo "$1" > "$receipt.partial" && mv "$receipt.partial" "$receipt" && exit "$1"
    exit 1
}}
for parent in $parents; do
    if [ "$(cat {receipts}/"$parent" 2>&1)" != 0 ]; then
        echo "lab: $node: job $parent, which it needs, did not end well; nothing was run"
        finish 1
    fi
done
echo "lab: $node: job $job on $SLURM_JOB_NODELIST, attempt $((restarts + 1))"
code=75
if [ -z "$warned" ]; then
    {launch} &
    child=$!
    wait "$child"; code=$?
    while [ -n "$noted" ]; do noted=; wait "$child"; code=$?; done
    child=
    [ ! -s "$LAB_VERDICT" ] || code=$(cat "$LAB_VERDICT")
fi
if [ "$code" -eq 0 ]; then
    {python} -m lab graph record "$node"
    code=$?
fi
why=
case "$code" in
    74) why="another attempt works on it"; sleep {busy} ;;
    75) why="stopped before its end" ;;
    138) [ -z "$warned" ] || why="stopped before it had begun" ;;
esac
if [ -n "$why" ]; then
    code=1
    if [ -n "$ended" ]; then
        echo "lab: $node: $why; SLURM ends the job"
    elif [ "$restarts" -ge {requeues} ]; then
        echo "lab: $node: $why; given up after {requeues} returns to the queue"
    else
        echo "lab: $node: $why; back to the queue"
        trap - TERM
        trap '' USR1
        for attempt in 1 2 3 4 5; do
            scontrol requeue "$job" && sleep 600  # SLURM ends this script here
            sleep 2
        done
        echo "lab: $node: SLURM does not take it back"
    fi
fi
finish "$code"
"""
# In each process of a node with several. The first exit code that is not 0 counts: others may follow from
# it. A process that stops in order must not take the others with it, which may still be saving; one that
# finds its place taken must, for they wait for it.
_PROCESS = """\
trap : USR1 TERM
{command}
code=$?
[ "$code" -eq 0 ] || (set -o noclobber; echo "$code" > "$LAB_VERDICT") 2> /dev/null
[ "$code" -ne 75 ] || exit 0
exit "$code"
"""


def script(
    tasks: Mapping[str, Task],
    parents: Mapping[str, Sequence[str]],
    resources: Resources,
    receipts: Path,
    code: Path,
) -> str:
    """The script of a job, or of an array.

    Args:
        tasks: index in the array -> what it runs there; "" -> what a job that is no array runs. The command
            is one program with its arguments: it gets the signals.
        parents: node -> ids of the jobs that have to have ended well.
        resources: of each.
        receipts: folder for them.
        code: folder to import the lab from.
    """
    processes = resources.nodes * resources.tasks
    launch = 'bash -c "$command"'
    if processes > 1:
        # --wait=0: the first process to end in order sets the others no time, whatever the cluster's default;
        # --cpus-per-task: srun no longer takes it from the job
        launch = (
            f"srun --kill-on-bad-exit=1 --wait=0 --ntasks={processes} --ntasks-per-node={resources.tasks} "
            f"--cpus-per-task={resources.cpus} {launch}"
        )
    cases = []
    for index, task in tasks.items():
        command = _PROCESS.format(command=task.command) if processes > 1 else task.command
        needed = " ".join(parents[task.name])
        cases.append(f"    '{index}') node={shlex.quote(task.name)} parents='{needed}'")
        cases.append(f"        command={shlex.quote(command)} ;;")
    chosen = resources.strategy != "auto"  # otherwise it is for the stage's configuration to say
    return _SCRIPT.format(
        cases="\n".join(cases),
        receipts=shlex.quote(str(receipts)),
        programs=shlex.quote(str(Path(sys.executable).parent)),
        python=shlex.quote(sys.executable),
        code=shlex.quote(str(code)),
        cpus=resources.cpus,
        strategy=f"export LAB_STRATEGY={shlex.quote(resources.strategy)}\n" if chosen else "",
        launch=launch,
        busy=_BUSY,
        requeues=REQUEUES,
    )


def options(resources: Resources) -> tuple[str, ...]:
    """What sbatch has to know of a node's needs."""
    found = [
        f"--nodes={resources.nodes}",
        f"--ntasks-per-node={resources.tasks}",
        f"--cpus-per-task={resources.cpus}",
    ]
    warning = WARNING
    if resources.time:
        found.append(f"--time={resources.time}")
        warning = min(WARNING, _seconds(resources.time) // 3)  # of a short limit, time to work is left
    found.append(
        f"--signal=B:USR1@{warning}"
    )  # B: to the script; else to what srun has started, and no other
    if resources.memory:
        found.append(f"--mem={resources.memory}")
    if resources.gpus:
        found.append(f"--gres=gpu:{resources.gpus}")
    if resources.partition:
        found.append(f"--partition={resources.partition}")
    return tuple(found)


def _seconds(limit: str) -> int:
    """A time limit in seconds: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or `D-H:M:S`."""
    days, _, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))
