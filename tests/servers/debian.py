"""Programs that tests need and a machine lacks: root gets Debian's packages of them installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


class Unavailable(Exception):
    """Why something that a test needs cannot be on this machine."""


def install(what: str, packages: Sequence[str]) -> None:
    """Installs packages without starting their services; of several processes one at a time.

    Args:
        what: is missing, for messages.
        packages: of Debian.

    Raises:
        Unavailable: they cannot be installed here.
    """
    missing = f"{what} is not installed"
    if not shutil.which("apt-get"):
        raise Unavailable(f"{missing}, and this is no Debian where it could be")
    if os.geteuid() != 0:
        raise Unavailable(f"{missing}; root may: apt-get install {' '.join(packages)}")
    with Path(tempfile.gettempdir(), "lab-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # apt does not wait for another apt
        _install(missing, packages)


def _install(missing: str, packages: Sequence[str]) -> None:
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:  # packages must not start services of the system
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", "-qq", *command], env=environment, capture_output=True, text=True, timeout=600
            )
        if done.returncode:
            raise Unavailable(f"{missing}, and apt-get fails: {' '.join(done.stderr.split())[-300:]}")
    finally:
        if ours:
            policy.unlink()
