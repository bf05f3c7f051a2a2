"""Which code a run came from."""

from __future__ import annotations

import os
import subprocess

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


def _git(*arguments: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # never in the way of a person's commit
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, env=environment, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
