"""Which code a run came from, and on what it ran."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = {
    "torch": "torch",
    "lightning": "pytorch-lightning",
    "transformers": "transformers",
    "diffusers": "diffusers",
    "timm": "timm",
}
# Written by the pipeline itself while it runs: no sign of edited code.
_RESULTS = (":(exclude,glob)**/dvc.lock", ":(exclude,glob)**/metrics/**")


def git_tags() -> dict[str, str]:
    """Commit and whether tracked files differ from it; nothing outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *_RESULTS)
    return {
        "git_commit": commit[:12],
        "git_dirty": "true" if changed else "false",
        "mlflow.source.git.commit": commit,
    }


def environment_tags() -> dict[str, str]:
    """Machine and versions of a run, for whoever wonders why another run's numbers differ."""
    found = {"python": platform.python_version(), "host": socket.gethostname(), "cpu": _processor()}
    found["threads"] = os.environ.get("OMP_NUM_THREADS", "")
    for name, package in _PACKAGES.items():
        with suppress(PackageNotFoundError):
            found[name] = version(package)
    return {f"env.{name}": value for name, value in found.items() if value}


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _git(*arguments: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # never in the way of a person's commit
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, env=environment, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
