"""Workers as jobs of a SLURM cluster: each joins the study, wherever it runs, and leaves when all is done.

Machines have to see the folder of the checkout, and the storage: the journal in it, or a server. A job that
is preempted, or comes to its time limit, saves the state of its trial and goes back to the queue.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

from lab.errors import LabError
from lab.graph.cluster.batch import REQUEUES, options
from lab.graph.cluster.jobs import JobState, RefusedError, queue, sbatch
from lab.graph.node import REPOSITORY
from lab.search.declaration import Declaration
from lab.search.trials import Trials

_LOOK = 2.0  # seconds between two looks at jobs and trials
_SCRIPT = """\
#!/bin/bash
# Submitted by `lab sweep --on slurm`: a worker.
child= noted=
trap 'noted=1; [ -z "$child" ] || kill -USR1 "$child"' USR1
export PATH={programs}:$PATH
export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cpus}}}
{python} -m lab sweep join {file} --storage {url} &
child=$!
wait "$child"; code=$?
while [ -n "$noted" ]; do noted=; wait "$child"; code=$?; done  # it returns when a signal comes
if [ "$code" -eq 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 600  # SLURM ends this script here
fi
exit "$code"
"""


def work_on_slurm(trials: Trials, url: str, count: int) -> None:
    """Has workers with SLURM until all trials are finished; those of an earlier call count.

    Args:
        trials: of the study, which is ready.
        url: of its storage.
        count: of workers.

    Raises:
        LabError: SLURM refuses a job, or all have ended before all trials have.
        KeyboardInterrupt: a signal asked to leave; the jobs go on.
    """
    sweep = trials.sweep
    prefix = f"sweep-{hashlib.sha256(sweep.study.encode()).hexdigest()[:8]}-"
    live = _live(prefix)
    logs = Path.cwd() / ".lab" / "sweeps" / sweep.study
    logs.mkdir(parents=True, exist_ok=True)
    for number in range(len(live) + 1, count + 1):
        _submit(sweep, url, f"{prefix}{uuid.uuid4().hex[:12]}", logs / f"worker-{number}.log")
    print(
        f"{len(live)} workers were there, {max(0, count - len(live))} submitted; logs in {logs}", flush=True
    )
    try:
        while (done := len(trials.finished())) < trials.wanted:
            time.sleep(_LOOK)
            if not _live(prefix) and len(trials.finished()) < trials.wanted:
                raise LabError(f"all workers have ended after {done} of {trials.wanted} trials; see {logs}")
    except KeyboardInterrupt:
        print(f"the workers go on; `lab sweep show {sweep.path}` says how far they are", flush=True)
        raise


def _live(prefix: str) -> list[JobState]:
    return [state for (token, _), state in queue().items() if token.startswith(prefix) and state.live]


def _submit(sweep: Declaration, url: str, token: str, log: Path) -> None:
    resources = replace(sweep.resources, nodes=1, tasks=1)
    script = _SCRIPT.format(
        programs=shlex.quote(str(Path(sys.executable).parent)),
        code=shlex.quote(str(REPOSITORY)),
        cpus=resources.cpus,
        python=shlex.quote(sys.executable),
        file=shlex.quote(str(sweep.path.absolute())),
        url=shlex.quote(url),
        requeues=REQUEUES,
    )
    asked = [
        *options(resources),
        f"--job-name=sweep-{sweep.name}",
        f"--chdir={Path.cwd()}",
        f"--output={str(log).replace('%', '%%')}",
        "--open-mode=append",
        "--requeue",
    ]
    try:
        sbatch(asked, script, token)
    except RefusedError as error:
        raise LabError(f"{sweep.path}: resources: SLURM refuses the job: {error}") from None
