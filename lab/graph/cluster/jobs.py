"""SLURM's commands: what they are told, and what they say of jobs.

Written for SLURM 22.05 and newer. Needs sbatch, squeue, scancel and scontrol; sacct is asked where there is
one. A controller that does not answer is asked again for a while.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lab.errors import LabError, nearest

State = Literal[
    "pending", "running", "requeued", "blocked", "done", "failed", "cancelled", "timeout", "unknown"
]

_PATIENCE = 60.0  # seconds for which a controller that does not answer is asked again
_PAUSE = 1.0  # seconds between two attempts; SLURM's own commands try for some seconds each
_MARK = "lab"  # before the token in the comment of a job

_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_ENDS: dict[str, tuple[State, str]] = {
    "COMPLETED": ("done", ""),
    "FAILED": ("failed", ""),
    "BOOT_FAIL": ("failed", "its node did not start"),
    "NODE_FAIL": ("failed", "its node was lost"),
    "OUT_OF_MEMORY": ("failed", "out of memory"),
    "PREEMPTED": ("cancelled", "preempted"),
    "CANCELLED": ("cancelled", ""),
    "REVOKED": ("cancelled", ""),
    "TIMEOUT": ("timeout", "time limit"),
    "DEADLINE": ("timeout", "deadline"),
}
_NEVER = "DependencyNeverSatisfied"
# fields of squeue with their widths: it cuts what is longer and separates nothing
_FIELDS = {"JobArrayID": 32, "State": 16, "RestartCnt": 8, "exit_code": 12, "Comment": 48, "Reason": 160}
_SILENCE = re.compile(
    "unable to contact|connection (refused|failure)|timed out|zero bytes|transport endpoint"
    "|unexpected message",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class JobState:
    """What SLURM says of a job.

    Attributes:
        state: `requeued` is pending after an interruption; `blocked` is queued behind a job that did not end
            well; `unknown` is no longer known to SLURM and left no trace.
        job: its id, `123` or `123_0`; "" where the submission broke off before SLURM answered.
        reason: why it waits or how it ended, "" where there is nothing to say.
        restarts: times that it was put back into the queue.
        code: folder of the code that it runs.
    """

    state: State
    job: str
    reason: str = ""
    restarts: int = 0
    code: str = ""

    @property
    def live(self) -> bool:
        """Whether it may still do something by itself."""
        return self.state in ("pending", "running", "requeued")

    @property
    def queued(self) -> bool:
        """Whether SLURM still has it in the queue or running."""
        return self.live or self.state == "blocked"

    def __str__(self) -> str:
        again = f"{self.restarts} times" if self.state == "requeued" and self.restarts > 1 else ""
        return " ".join([self.state, *filter(None, [again, f"({self.reason})" if self.reason else ""])])


class RefusedError(Exception):
    """SLURM does not take a job; says why."""


class _SilentError(Exception):
    """The controller does not answer; says in which words."""


def sbatch(options: Sequence[str], script: str, token: str) -> str:
    """Submit a job, once, also where SLURM's answer gets lost: a job with the token may exist nevertheless.

    Args:
        options: of the command.
        script: of the job.
        token: for `queue` to know the job by.

    Returns:
        Its id.

    Raises:
        RefusedError: by SLURM.
        LabError: there is no sbatch, or the controller does not answer.
    """
    command = ["sbatch", "--parsable", f"--comment={_MARK}:{token}", *options]
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            done = _run(command, script)
        except _SilentError as error:
            _wait(error, end)
            known = {found: state.job for (found, _), state in queue().items()}
            if token in known:
                return known[token].partition("_")[0]
            continue
        if done.returncode:
            raise RefusedError(_complaint(done.stderr))
        return done.stdout.strip().partition(";")[0]  # "id;cluster" where there are several


def scancel(jobs: Sequence[str]) -> None:
    """Cancel jobs; those that have ended are left alone."""
    for part in _portions(jobs):
        _ask("scancel", "--quiet", *part)


def queue() -> dict[tuple[str, str], JobState]:
    """The lab's jobs that SLURM remembers, by token and index in the array ("" for a job that is none).

    Ended ones are among them for some minutes, five unless the cluster says otherwise (MinJobAge).
    """
    columns = ",".join(f"{name}:{width}" for name, width in _FIELDS.items())
    said = _ask("squeue", "--me", "--noheader", "--array", "--states=all", f"--Format={columns}")
    found = {}
    for line in said.splitlines():
        values, start = [], 0
        for width in _FIELDS.values():
            values.append(line[start : start + width].strip())
            start += width
        job, state, restarts, code, comment, reason = values
        mark, _, token = comment.partition(":")
        if mark == _MARK:
            index = job.partition("_")[2]
            found[token, index] = _read(job, state, int(restarts or 0), _exit_code(code), reason)
    return found


def accounted(jobs: Sequence[str]) -> dict[str, JobState]:
    """What accounting says of jobs, by id; nothing where there is none."""
    found: dict[str, JobState] = {}
    if shutil.which("sacct") is None:
        return found
    for part in _portions(jobs):
        options = ["--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode"]
        done = subprocess.run(["sacct", *options, "-j", ",".join(part)], capture_output=True, text=True)
        for line in done.stdout.splitlines() if done.returncode == 0 else []:
            job, state, code = line.split("|")[:3]
            found[job] = _read(job, state.partition(" ")[0], 0, _exit_code(code), "")  # CANCELLED by 1000
    return found


def ended(job: str, code: int) -> JobState:
    """The state of a job of which nothing but the exit code is known."""
    return _read(job, "FAILED" if code else "COMPLETED", 0, code, "")


def largest_array() -> int:
    """Indices of arrays stay below this."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else 0


def _read(job: str, state: str, restarts: int, code: int, reason: str) -> JobState:
    """SLURM's words in the lab's."""
    reason = "" if reason in ("None", "(null)") else reason
    if state in _ENDS:
        word, why = _ENDS[state]
        if reason == _NEVER:
            why = "a job that it waits for did not end well"
        elif word == "failed" and not why:
            why = f"exit code {code}" if code else reason
        return JobState(word, job, why, restarts)
    if state not in _WAITING:
        return JobState("running", job, "", restarts)
    if reason == _NEVER:
        return JobState("blocked", job, "a job that it waits for did not end well", restarts)
    return JobState("requeued" if restarts or state != "PENDING" else "pending", job, reason, restarts)


def _exit_code(text: str) -> int:
    """Of `code:signal` or a wait status: the exit code, 128 + signal, as in the shell, of a killed job."""
    if ":" in text:
        code, number = map(int, text.split(":"))
    else:
        code, number = int(text or 0) >> 8, int(text or 0) & 127
    return code or (number and 128 + number)


def _portions(jobs: Sequence[str]) -> Iterator[Sequence[str]]:
    """Ids as far as a command line holds them."""
    for start in range(0, len(jobs), 500):
        yield jobs[start : start + 500]


def _complaint(stderr: str) -> str:
    """What sbatch says in one line, with the partitions that there are if it is about one."""
    lines = [line.removeprefix("sbatch: error: ") for line in stderr.splitlines() if line.strip()]
    text = lines[-1].removeprefix("Batch job submission failed: ") if lines else "no reason given"
    if wrong := re.search(r"invalid partition specified: (\S+)", stderr):
        text += f": '{wrong[1]}'{nearest(wrong[1], _ask('sinfo', '--noheader', '--format=%R').split())}"
    return text


def _ask(*command: str) -> str:
    """What a command of SLURM prints.

    Raises:
        LabError: it fails, or the controller does not answer.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            done = _run(command)
        except _SilentError as error:
            _wait(error, end)
            continue
        if done.returncode and command[0] != "scancel":  # which fails on a job that has just ended
            raise LabError(f"SLURM: {command[0]}: {' '.join(done.stderr.split()) or 'failed without a word'}")
        return done.stdout


def _wait(error: _SilentError, end: float) -> None:
    """Pause before the next attempt.

    Raises:
        LabError: there have been enough.
    """
    if time.monotonic() > end:
        raise LabError(
            f"SLURM's controller does not answer ({error}); its jobs are not lost: "
            "give the same command again later"
        ) from None
    time.sleep(_PAUSE)


def _run(command: Sequence[str], script: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM.

    Raises:
        LabError: there is none.
        _SilentError: the controller does not answer.
    """
    # where this is called from within a job, its variables must not reach the new one
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    if "SLURM_CONF" in os.environ:
        own["SLURM_CONF"] = os.environ["SLURM_CONF"]
    try:
        done = subprocess.run(
            command, input=script, capture_output=True, text=True, env=own, timeout=_PATIENCE
        )
    except FileNotFoundError:
        raise LabError(
            f"SLURM's {command[0]} is not on the PATH: give this command on a machine of the cluster, "
            "or run without --on slurm"
        ) from None
    except subprocess.TimeoutExpired:
        raise _SilentError(f"{command[0]} hangs") from None
    if done.returncode and _SILENCE.search(done.stderr):
        raise _SilentError(done.stderr.strip().splitlines()[-1])
    return done
