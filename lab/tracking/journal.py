"""What a run records, on disk before it is sent: neither a tracker nor a process that dies loses any of it.

A journal is a folder of its own below `.lab/tracking`: lines of JSON that are only ever appended, the files
that go with them, and how much of it MLflow has. Whoever holds its lock, which dies with a process, may send.
Its lines appear under their name locked and with their head, and go first when it is removed: whoever looks
for journals to send finds whole ones only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab.tracking import store

Record = dict[str, Any]
_LINES, _STATE = "journal.jsonl", "sent.json"
_FLAGS = os.O_RDWR | os.O_APPEND
_MOST = 1 << 20  # bytes that are read at once; a record is far shorter


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def spool() -> Path:
    """The folder of the journals that are meant for the store of this process."""
    digest = hashlib.sha256(store.tracking_uri().encode()).hexdigest()[:12]
    return store.root() / ".lab" / "tracking" / digest


def left() -> list[Path]:
    """Folders of the journals that are not wholly sent, the oldest first; some may be in use."""
    return sorted(lines.parent for lines in spool().glob(f"*/{_LINES}"))


class Journal:
    """An open journal, locked by this process. Appending is one `write`, reading it no concern of the writer.

    A fork may append, too, but has no part in the lock: it would hold it on when this process is gone.

    Args:
        folder: its place.
        head: the first record of a journal that is to be made; None opens one that is there.

    Raises:
        OSError: the disk takes no new one; one that was there is locked, or gone.

    Attributes:
        folder: its place; the name begins with the time it was made at, so names sort by age.
        sent: bytes of it that MLflow has.
        run_id: MLflow's id of the run, once that is open there.
        tried: whether opening the run was tried, so that it may exist although `run_id` is not known.
    """

    def __init__(self, folder: Path, head: Record | None = None) -> None:
        self.folder = folder
        self.sent = 0
        self._torn = False
        self.run_id: str | None = None
        self.tried = head is None
        lines = folder / _LINES
        place = lines if head is None else lines.with_suffix(".new")
        self._handle = os.open(place, _FLAGS if head is None else _FLAGS | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if head is not None:
                self.append(head)
                os.rename(place, lines)
            elif not os.path.samestat(os.fstat(self._handle), os.stat(lines)):
                raise FileNotFoundError(f"{folder} was sent meanwhile")
        except BaseException:
            self.close()
            raise
        _opened.add(self)
        with suppress(OSError, ValueError, KeyError):
            state = json.loads((folder / _STATE).read_text())
            self.sent, self.run_id = state["bytes"], state["run_id"]

    @classmethod
    def new(cls, head: Record) -> Journal:
        """A fresh journal; its first line says whose records follow."""
        folder = spool() / f"{now()}-{uuid.uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        try:
            return cls(folder, head)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @classmethod
    def adopt(cls, folder: Path) -> Journal | None:
        """A journal that its process has left behind; None if somebody works on it."""
        try:
            return cls(folder)
        except OSError:  # locked, or gone meanwhile
            return None

    @property
    def key(self) -> str:
        return self.folder.name

    def append(self, record: Record) -> None:
        """Adds a record.

        Raises:
            OSError: the disk does not take it; what was there before stays readable.
        """
        line = b"\n" * self._torn + json.dumps(record, separators=(",", ":")).encode() + b"\n"
        self._torn = os.write(self._handle, line) < len(line)
        if self._torn:
            raise OSError(f"{self.folder}: the disk took a part of a record only")

    def sync(self) -> None:
        """Returns when what was appended would outlive a power cut."""
        os.fsync(self._handle)

    def file(self, name: str) -> Path:
        """A path for a file that a record names; each call gives another."""
        place = self.folder / "files" / uuid.uuid4().hex / name
        place.parent.mkdir(parents=True)
        return place

    def head(self) -> Record | None:
        """The first record, which does not count among the unsent; None where its process died over it."""
        line, end, _ = os.pread(self._handle, _MOST, 0).partition(b"\n")
        self.sent = max(self.sent, len(line) + len(end))
        return json.loads(line) if end else None

    def unsent(self, most: int) -> tuple[list[Record], int]:
        """The next records that MLflow has not got, and where they end; of a torn line nothing."""
        data = os.pread(self._handle, _MOST, self.sent)
        records: list[Record] = []
        end = 0
        while len(records) < most and (stop := data.find(b"\n", end)) >= 0:
            with suppress(ValueError):  # a line that a full disk or a power cut has torn
                records.append(json.loads(data[end:stop]))
            end = stop + 1
        return records, self.sent + end

    @property
    def changed(self) -> int:
        """When the last record was added, in milliseconds."""
        return int(os.fstat(self._handle).st_mtime * 1000)

    def mark(self, sent: int | None = None) -> None:
        """Remembers how far MLflow has got it; where that is lost, more is sent again than need be."""
        self.sent = self.sent if sent is None else sent
        draft = self.folder / f"{_STATE}.new"
        draft.write_text(json.dumps({"bytes": self.sent, "run_id": self.run_id}))
        os.replace(draft, self.folder / _STATE)

    def close(self) -> None:
        """Lets go of it; another process may send the rest."""
        handle, self._handle = self._handle, -1  # the number may soon be that of another file
        os.close(handle)

    def remove(self) -> None:
        """Deletes it: all was sent."""
        (self.folder / _LINES).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def _forked(self) -> None:
        """In a fork: the same lines, without the lock."""
        if self._handle >= 0:
            self.close()
            with suppress(OSError):  # sent meanwhile
                self._handle = os.open(self.folder / _LINES, _FLAGS)


def _follow_fork() -> None:
    for journal in list(_opened):
        journal._forked()


_opened: weakref.WeakSet[Journal] = weakref.WeakSet()
os.register_at_fork(after_in_child=_follow_fork)
