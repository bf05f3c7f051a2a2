"""Copies of the checkout to run real commands in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]

Copy = Callable[[Path], Path]
Lab = Callable[..., "subprocess.Popen[str]"]
Finished = Callable[..., str]


@pytest.fixture(scope="session")
def copy_checkout() -> Copy:
    """Copies what git would take of the checkout, without tests and results, into a folder."""

    def copy(folder: Path) -> Path:
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split(
            "\0"
        )
        for name in filter(None, names):
            if not name.startswith("tests/") and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        for made in ("dvc.lock", "metrics", "output"):  # of whoever works in the checkout
            place = folder / made
            shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
        return folder

    return copy


@pytest.fixture(scope="session")
def environment() -> Callable[..., dict[str, str]]:
    """The environment in which a copy runs its own code."""

    def of(folder: Path, **more: str) -> dict[str, str]:
        left_out = ("MLFLOW_TRACKING_URI", "DVC_ROOT")
        kept = {key: value for key, value in os.environ.items() if key not in left_out}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"LAB_TRACKING": "on", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "PATH": path}
        return {**kept, **own, **more}

    return of


@pytest.fixture(scope="session")
def lab(environment: Callable[..., dict[str, str]]) -> Lab:
    """Starts `lab` in a copy of the checkout."""

    def start(folder: Path, *words: str, cwd: Path | None = None, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "lab", *words],
            cwd=cwd or folder,
            env=environment(folder, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start
