"""Runs an ablation graph on SLURM: one job a node, chained by dependencies; no process has to stay alive.

SLURM is the scheduler and the lab keeps no second one. A node's job starts when the jobs of its parents
have ended well, and is cancelled when one of them did not. Nodes that differ in the seed alone make one
array. What a job does: batch.py. What SLURM is asked: jobs.py.

What was submitted stands in `.lab/slurm/jobs.jsonl`, a line before each submission and one after it. The
first has a token that the job's comment repeats, so that a job is found again whatever happened in between,
and an id that SLURM has given to somebody else is not mistaken for ours.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

from lab.errors import LabError, nearest
from lab.graph.cluster import batch
from lab.graph.cluster.jobs import (
    JobState,
    RefusedError,
    accounted,
    ended,
    largest_array,
    queue,
    sbatch,
    scancel,
)

if TYPE_CHECKING:
    from lab.graph.ablation import Resources
    from lab.graph.task import Task

_SEED = re.compile(r"(.+)-s(0|[1-9]\d*)")


def submit(
    tasks: Mapping[str, Task],
    waiting: Callable[[], Collection[str]],
    folder: Path,
    code: Path,
    resources: Callable[[str], Resources],
) -> dict[str, str]:
    """Have a job with SLURM for every node that is not up to date.

    A job that runs is left alone. One that waits is kept if it will run this code after the right parents,
    else it makes way for a new one. Calls on one folder follow one another.

    Args:
        tasks: all nodes by name.
        waiting: names those that are not up to date. It is asked after SLURM was, so that a node which ends
            in between, and was recorded before that, is not run again.
        folder: of the ablation; the same on all machines.
        code: folder to import the lab from; it has to stay as it is until the jobs have ended.
        resources: of a node, by name.

    Returns:
        Node -> job id, for all that `waiting` named.

    Raises:
        LabError: there is no SLURM here, it refuses a job or does not answer. What was submitted before
            stays.
    """
    folder = folder.resolve()
    with _only_one(folder):
        journal = _Journal(folder)
        journal.prune()
        before = _states(journal)
        names = set(waiting())
        largest = largest_array() if names else 0
        order = TopologicalSorter({name: tasks[name].parents & names for name in names})
        order.prepare()
        ids: dict[str, str] = {}
        while order.is_active():
            ready = order.get_ready()
            fresh, replaced = [], []
            for name in sorted(ready):
                state = before.get(name)
                parents = {ids[parent] for parent in tasks[name].parents & names}
                if state is not None and state.live and journal.newest[name].fits(name, state, code, parents):
                    ids[name] = state.job
                    continue
                fresh.append(tasks[name])
                if state is not None and state.queued:
                    replaced.append(state.job)
            scancel(replaced)
            for group in _groups(fresh, ids, resources, largest):
                ids |= _submit(group, journal, folder, code)
            order.done(*ready)
        return ids


def states(folder: Path) -> dict[str, JobState]:
    """SLURM's view of the nodes that were submitted from a folder. Whether one is done, its files say.

    Raises:
        LabError: there is no SLURM here, or it does not answer.
    """
    return _states(_Journal(folder.resolve()))


def cancel(folder: Path, names: Collection[str] = ()) -> list[str]:
    """Cancel jobs, and with them, by SLURM, all that depend on them.

    Args:
        folder: of the ablation.
        names: nodes; all if none is given.

    Returns:
        The nodes whose jobs were told to end.

    Raises:
        LabError: a node that was never submitted; there is no SLURM here, or it does not answer.
    """
    with _only_one(folder.resolve()):  # so that nothing is added by a submission under way
        known = states(folder)
        for name in names:
            if name not in known:
                raise LabError(f"{folder}: no job of a node '{name}'{nearest(name, known)}")
        chosen = sorted(name for name in names or known if known[name].queued)
        scancel([known[name].job for name in chosen])
    return chosen


def watch(
    folder: Path, show: Callable[[Mapping[str, JobState]], None], seconds: float = 3.0
) -> dict[str, JobState]:
    """Follow the jobs of a folder until all have ended.

    Args:
        folder: of the ablation.
        show: gets what has changed; at first, all.
        seconds: between two questions to SLURM.

    Returns:
        How they ended.

    Raises:
        LabError: SLURM does not answer; that does the jobs no harm.
        KeyboardInterrupt: Ctrl-C, after a line that says that the jobs go on.
    """
    seen: dict[str, JobState] = {}
    try:
        while True:
            now = states(folder)
            if changed := {name: state for name, state in now.items() if seen.get(name) != state}:
                show(changed)
            if not any(state.live for state in now.values()):
                return now
            seen = now
            time.sleep(seconds)
    except KeyboardInterrupt:
        print(
            f"the jobs go on without this command; `lab graph status {folder.name}` says how far they are, "
            f"`lab graph cancel {folder.name}` ends them",
            file=sys.stderr,
        )
        raise


@dataclass(frozen=True)
class _Group:
    """Nodes for one sbatch.

    Attributes:
        tasks: index in the array -> node; "" -> the node of a job that is none.
        after: node -> ids of the jobs that it waits for.
        dependency: the same as sbatch takes it.
        resources: of each.
    """

    tasks: dict[str, Task]
    after: dict[str, list[str]]
    dependency: str
    resources: Resources


def _groups(
    tasks: Sequence[Task], ids: Mapping[str, str], resources: Callable[[str], Resources], largest: int
) -> Iterator[_Group]:
    """Put together nodes that differ in the seed alone: in name and, element by element, in parents.

    Args:
        tasks: nodes whose parents have jobs.
        ids: of these, by node.
        resources: of a node, by name.
        largest: arrays have indices below this.
    """
    after = {task.name: sorted(ids[parent] for parent in task.parents if parent in ids) for task in tasks}
    together: dict[object, dict[str, Task]] = defaultdict(dict)
    for task in tasks:
        seed = _SEED.fullmatch(task.name)
        alike: object = task.name
        if seed is not None and int(seed[2]) < largest and task.log.name == f"{task.name}.log":
            needs = batch.options(resources(task.name))
            alike = seed[1], task.folder, task.log.parent, needs, _dependency(after[task.name], seed[2])
        together[alike][seed[2] if seed else ""] = task
    for members in together.values():
        index, first = next(iter(members.items()))
        if len(members) == 1:
            index, members = "", dict.fromkeys([""], first)
        waited = {task.name: after[task.name] for task in members.values()}
        yield _Group(members, waited, _dependency(waited[first.name], index), resources(first.name))


def _dependency(jobs: Sequence[str], index: str) -> str:
    """Wait for jobs; an element of an array waits for the same element of other arrays (aftercorr)."""
    terms = set()
    for job in jobs:
        array, _, element = job.partition("_")
        terms.add(f"aftercorr:{array}" if index and element == index else f"afterok:{job}")
    return ",".join(sorted(terms))


def _submit(group: _Group, journal: _Journal, folder: Path, code: Path) -> dict[str, str]:
    """Submit nodes; their job ids."""
    nodes = {task.name: index for index, task in group.tasks.items()}
    submission = _Submission(uuid.uuid4().hex, nodes, group.after, str(code))
    first = next(iter(group.tasks.values()))
    name, log = first.name, first.log.absolute()
    options = list(batch.options(group.resources))
    if len(nodes) > 1:
        name = name.rpartition("-")[0]
        log = log.with_name(f"{name}-s%a.log")
        options.append(f"--array={','.join(nodes.values())}")
    if group.dependency:
        options.append(f"--dependency={group.dependency}")
    log.parent.mkdir(parents=True, exist_ok=True)
    journal.receipts.mkdir(parents=True, exist_ok=True)
    options += [
        f"--job-name={name}",
        f"--chdir={first.folder.absolute()}",
        f"--output={str(log.parent).replace('%', '%%')}/{log.name}",
        "--open-mode=append",
        "--requeue",
        "--kill-on-invalid-dep=yes",
    ]
    script = batch.script(group.tasks, group.after, group.resources, journal.receipts, code)
    journal.add(submission)
    try:
        submission = replace(submission, job=sbatch(options, script, submission.token))
    except RefusedError as error:
        journal.forget(submission)
        raise LabError(
            f"{folder / 'ablation.yaml'}: resources of {first.name}: SLURM refuses the job: {error}; "
            "jobs that were submitted before it stay"
        ) from None
    journal.add(submission)
    return {name: submission.id_of(name) for name in nodes}


@dataclass(frozen=True)
class _Submission:
    """What one sbatch submitted.

    Attributes:
        token: in the comment of its jobs.
        nodes: node -> index in the array, "" for a job that is none.
        after: node -> ids of the jobs that it waits for.
        code: folder that the lab is imported from.
        job: id, "" as long as SLURM has not answered.
    """

    token: str
    nodes: dict[str, str]
    after: dict[str, list[str]]
    code: str
    job: str = ""

    def id_of(self, name: str) -> str:
        index = self.nodes[name]
        return f"{self.job}_{index}" if self.job and index else self.job

    def fits(self, name: str, state: JobState, code: Path, parents: set[str]) -> bool:
        """Whether a node's live job may stay."""
        return parents <= set(self.after[name]) and (state.state == "running" or self.code == str(code))


class _Journal:
    """The submissions of a folder."""

    def __init__(self, folder: Path) -> None:
        self.receipts = folder / ".lab" / "slurm" / "ended"
        self._file = folder / ".lab" / "slurm" / "jobs.jsonl"
        self._all: dict[str, _Submission] = {}
        for line in self._file.read_text().splitlines() if self._file.exists() else []:
            try:
                submission = _Submission(**json.loads(line))
            except ValueError:  # cut off, as its writer was killed
                continue
            self._all[submission.token] = submission
        self.newest = {name: submission for submission in self._all.values() for name in submission.nodes}

    def add(self, submission: _Submission) -> None:
        """Note a submission, or what has become known of it."""
        self._all[submission.token] = submission
        with self._file.open("ab") as file:
            file.write(f"{json.dumps(asdict(submission))}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def forget(self, submission: _Submission) -> None:
        """Drop a submission that SLURM refused."""
        del self._all[submission.token]
        self._write()

    def prune(self) -> None:
        """Drop submissions that newer ones have replaced, and receipts of their jobs."""
        newest = {submission.token for submission in self.newest.values()}
        self._all = {token: submission for token, submission in self._all.items() if token in newest}
        self._write()
        jobs = {submission.job for submission in self._all.values()}
        for receipt in self.receipts.glob("*"):
            if re.split(r"[_.]", receipt.name)[0] not in jobs:
                receipt.unlink(missing_ok=True)

    def _write(self) -> None:
        draft = self._file.with_suffix(".partial")
        with draft.open("w") as file:
            file.writelines(f"{json.dumps(asdict(submission))}\n" for submission in self._all.values())
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self._file)


def _states(journal: _Journal) -> dict[str, JobState]:
    if not journal.newest:
        return {}
    queued = queue()
    found = {
        name: queued.get((submission.token, submission.nodes[name]))
        or _by_receipt(journal.receipts, submission.id_of(name))
        for name, submission in journal.newest.items()
    }
    lost = [journal.newest[name].id_of(name) for name, state in found.items() if state is None]
    known = accounted([job for job in lost if job])
    states = {}
    for name, submission in journal.newest.items():
        job = submission.id_of(name)
        state = found[name] or known.get(job) or JobState("unknown", job, "SLURM does not know it any more")
        states[name] = replace(state, code=submission.code)
    return states


def _by_receipt(receipts: Path, job: str) -> JobState | None:
    """How a job ended according to its receipt, None where it left none."""
    try:
        return ended(job, int((receipts / job).read_text())) if job else None
    except (OSError, ValueError):
        return None


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Let one submission or cancellation at a time work on a folder; others wait."""
    path = folder / ".lab" / "slurm" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
