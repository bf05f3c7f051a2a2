"""Hashes of files and folders as DVC computes them, remembered for as long as nothing is written there."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.graph.node import md5_of

_IGNORED = "__pycache__"  # as .dvcignore has it


@dataclass(frozen=True)
class Hashed:
    """What DVC records of a file or folder: MD5 (`....dir` of a folder), bytes, and files of a folder."""

    md5: str
    size: int
    files: int | None = None


def hashed(path: Path) -> Hashed:
    """Hash a file, or a folder by the list of its files with theirs.

    Raises:
        OSError: there is no such file.
    """
    if not path.is_dir():
        return Hashed(md5_of(path), path.stat().st_size)
    listed, size = [], 0
    for name, file in files_in(path):
        listed.append({"md5": md5_of(file), "relpath": name})
        size += file.stat().st_size
    listed.sort(key=lambda entry: tuple(entry["relpath"].split("/")))
    text = json.dumps(listed, sort_keys=True).encode()
    return Hashed(f"{hashlib.md5(text, usedforsecurity=False).hexdigest()}.dir", size, len(listed))


def files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name, relative to the folder, and path of every file that DVC would hash."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != _IGNORED]
        for name in names:
            file = Path(parent) / name
            if not name.endswith(".pyc"):
                yield file.relative_to(folder).as_posix(), file


class Memory:
    """Hashes and parsed files that were computed before, for files whose size and times are the same.

    Args:
        file: where it is kept; it may be lost or removed at any time.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[str, list[Any]] = {}
        self._used: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError):
            self._known = json.loads(file.read_text())

    def md5(self, path: Path) -> str | None:
        """DVC's hash of a file or folder, None if there is none."""
        found = self.of(path, "md5", lambda place: hashed(place).md5)
        return None if found is None else str(found)

    def of(self, path: Path, what: str, compute: Callable[[Path], Any]) -> Any:
        """What was computed of a file or folder, anew where it has changed; None if there is none."""
        key = f"{what}:{path}"
        if key in self._used:
            return self._used[key][1]
        token = _token(path)
        if token is None:
            return None
        known = self._known.get(key)
        self._used[key] = known if known is not None and known[0] == token else [token, compute(path)]
        return self._used[key][1]

    def save(self) -> None:
        """Keep what was asked for this time."""
        if self._used != self._known:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            draft = self.file.with_name(f".{self.file.name}.{uuid.uuid4().hex[:8]}")
            draft.write_text(json.dumps(self._used))
            os.replace(draft, self.file)


def _token(path: Path) -> str | None:
    """Changes whenever a file, or any file of a folder, is written."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not path.is_dir():
        return f"{status.st_mtime_ns}:{status.st_size}:{status.st_ino}"
    digest = hashlib.sha256()
    for line in sorted(_stats(str(path), "")):
        digest.update(line.encode())
    return digest.hexdigest()[:16]


def _stats(folder: str, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name != _IGNORED:
                    yield from _stats(entry.path, f"{prefix}{entry.name}/")
            elif not entry.name.endswith(".pyc"):
                status = entry.stat()
                yield f"{prefix}{entry.name}\0{status.st_mtime_ns}:{status.st_size}:{status.st_ino}\n"
