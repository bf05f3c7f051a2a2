"""The code that nodes run: a copy made when they were submitted, so that edits meanwhile change nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.graph.hashing import Hashed, files_in, hashed
from lab.graph.node import REPOSITORY

_PACKAGES = ("lab", "components")
_KEPT = 20  # copies; jobs may wait in a queue for long


@dataclass(frozen=True)
class Snapshot:
    """A copy of the packages whose code nodes run.

    Attributes:
        folder: of the copy; first in PYTHONPATH, it takes the place of the checkout.
        checkout: that it is a copy of.
    """

    folder: Path
    checkout: Path

    def hashed(self, path: Path) -> Hashed | None:
        """DVC's hash of what a path of the checkout was when the copy was made; None for other paths."""
        try:
            place = path.resolve().relative_to(self.checkout)
        except ValueError:
            return None
        copied = self.folder / place
        return hashed(copied) if place.parts[0] in _PACKAGES and copied.exists() else None


def take_snapshot() -> Snapshot:
    """Copy the code as it is now; equal code has one copy, below `.lab/code` of the checkout."""
    home = REPOSITORY / ".lab" / "code"
    if REPOSITORY.parent.name == "code" and REPOSITORY.parents[1].name == ".lab":
        return Snapshot(REPOSITORY, REPOSITORY.parents[2])  # this process runs from a copy
    while True:
        before = _digest(REPOSITORY)
        copy = home / before
        if not copy.exists():
            draft = home / f".{before}.{uuid.uuid4().hex[:8]}"
            try:
                for package in _PACKAGES:
                    for name, file in files_in(REPOSITORY / package):
                        target = draft / package / name
                        target.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(file, target)
                if _digest(draft) != before:  # edited while it was copied
                    continue
                with suppress(OSError):  # another runner was quicker
                    os.rename(draft, copy)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        os.utime(copy)
        for old in sorted(home.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return Snapshot(copy, REPOSITORY)


def _digest(root: Path) -> str:
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for name, file in sorted(files_in(root / package)):
            digest.update(f"{package}/{name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
