"""Claims: at any time one attempt works on a node, whoever started it and on whichever machine.

A claim is a small file that its holder touches every few seconds. Whoever finds one goes away while its
holder lives: a process of this machine is looked up, one of another machine counts as lost when its claim was
not touched for a lease. Then the claim is taken over, and an attempt that was only paused finds at its end
that the node is no longer its own; what it made is dropped. Ages are differences of times that the file
system itself gave, so clocks of machines need not agree.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.errors import LabError
from lab.tracking import process

LEASE = float(os.environ.get("LAB_LEASE_SECONDS", "60"))


class ClaimedError(LabError):
    """Another attempt works on the node, or has taken it over; says which."""

    code = 74  # of <sysexits.h>: try again later


class Claim:
    """The right to publish a node.

    Args:
        path: of the claim's file; its folder is made.
        attempt: how the job calls this attempt, for messages.
    """

    def __init__(self, path: Path, attempt: str = "") -> None:
        self.path = path
        self._token = uuid.uuid4().hex
        self._content = json.dumps({"token": self._token, "attempt": attempt, **process.signature()})
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> Claim:
        """Takes the claim.

        Raises:
            ClaimedError: a living attempt has it.
        """
        with self._locked():
            if (holder := self._holder()) is not None and not self._lost(holder):
                raise ClaimedError(f"another attempt works on it: {_named(holder)}")
            for left in self.path.parent.glob(f"{self.path.name}.*"):  # who died while it had the lock
                if left.suffix != ".lock":
                    left.unlink()
            draft = self.path.with_name(f"{self.path.name}.{self._token}")
            draft.write_text(self._content)
            os.replace(draft, self.path)
        self._beat.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._beat.join()
        with self._locked():
            if (holder := self._holder()) is not None and holder["token"] == self._token:
                self.path.unlink()

    @contextmanager
    def fence(self) -> Iterator[None]:
        """Nobody takes the claim while this is open.

        Raises:
            ClaimedError: somebody took it before.
        """
        with self._locked():
            holder = self._holder()
            if holder is None or holder["token"] != self._token:
                by = _named(holder) if holder else "one that has ended"
                raise ClaimedError(f"this attempt was out of reach too long; another took over: {by}")
            yield

    def _touch(self) -> None:
        while not self._ended.wait(LEASE / 6):
            with suppress(OSError):  # gone or out of reach: the fence will tell
                if (self._holder() or {}).get("token") == self._token:
                    os.utime(self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _holder(self) -> dict[str, str] | None:
        try:
            return dict(json.loads(self.path.read_text()))
        except (OSError, ValueError):
            return None

    def _lost(self, holder: dict[str, str]) -> bool:
        if process.is_dead(holder):
            return True
        probe = self.path.with_name(f"{self.path.name}.{self._token}")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - self.path.stat().st_mtime > LEASE


def _named(holder: dict[str, str]) -> str:
    attempt = f", job {holder['attempt']}" if holder.get("attempt") else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{attempt}"
