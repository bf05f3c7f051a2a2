"""Who works on a run: enough to tell, later and from another process, whether it still lives."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping


def signature() -> dict[str, str]:
    """This process, as strings: host, pid and start time (a pid alone is used again)."""
    return {"host": socket.gethostname(), "pid": str(os.getpid()), "pid_started": _started(os.getpid())}


def is_here(marks: Mapping[str, str]) -> bool:
    """Whether the process ran on this machine, so that it can be judged at all."""
    return marks.get("host") == socket.gethostname()


def is_dead(marks: Mapping[str, str]) -> bool:
    """Whether a process of this machine is gone for certain; False for other machines."""
    pid = marks.get("pid", "")
    return is_here(marks) and pid.isdigit() and _started(int(pid)) != marks.get("pid_started")


def user() -> str:
    """Whose process this is."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a uid without a name, as in some containers
        return "unknown"


def _started(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()  # the name before it may hold spaces
    except OSError:
        return "gone"
    return "gone" if fields[0] == "Z" else fields[19]
