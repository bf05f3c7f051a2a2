"""The one writer of a process's runs: a thread that sends journals while the training goes on.

A training waits for MLflow twice, seconds at most: when its run opens, and when it ends. What MLflow has not
taken by then stays in the journal, and goes out before the next run does, or with `lab sync`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from threading import Event, Thread

from lab.tracking.delivery import Delivery, StuckError, warn
from lab.tracking.journal import Journal, left

_log = logging.getLogger("lab.tracking")
_EVERY = 10.0  # seconds between deliveries
_LONGEST = 60.0  # seconds between attempts, where MLflow does not answer
_PATIENCE = 120.0  # seconds without any progress; a server that hangs is given up sooner, after 10 s a call


class Writer(Thread):
    """Sends one journal until it is closed; earlier ones that were left behind go first.

    Args:
        journal: Of this process; the writer lets go of it, or removes it, when it ends.
        measure: Called before each delivery, to add to the journal.
    """

    def __init__(self, journal: Journal, measure: Callable[[], None] = lambda: None) -> None:
        super().__init__(name="lab-tracking", daemon=True)  # a call that hangs must not keep a process alive
        self._journal, self._measure = journal, measure
        self._delivery = Delivery(journal)
        self._owner = os.getpid()
        self._answered, self._wake, self._closing = Event(), Event(), Event()
        self._failures = 0
        self.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, None while it is not open there."""
        return self._delivery.run_id

    @property
    def here(self) -> bool:
        """Whether this process has the thread: a fork has the run's journal alone, and cannot end the run."""
        return os.getpid() == self._owner

    def wait_open(self) -> None:
        """Returns when the run is open, or cannot be for now."""
        if not self._answered.wait(_PATIENCE):
            _log.warning("MLflow has not answered within %.0f s; %s", _PATIENCE, self._kept())

    def close(self) -> None:
        """Sends the rest, as long as that gets on, and says where it stays if it does not."""
        self._measure()
        self._closing.set()
        self._wake.set()
        sent = -1
        while self.is_alive() and sent != (sent := self._journal.sent):
            self.join(_PATIENCE)
        if self.is_alive():
            _log.warning("MLflow does not answer; %s", self._kept())

    def run(self) -> None:
        """Until the journal is closed."""
        while True:
            last = self._closing.is_set()  # what is appended before it is set is sent below
            whole = self._attempt()
            self._answered.set()
            if last:
                break
            pause = min(_EVERY * 2 ** max(0, self._failures - 1), _LONGEST)
            self._wake.wait(pause)
            if not self._closing.is_set():
                self._measure()
        if whole:
            self._journal.remove()
        else:
            self._journal.close()

    def _attempt(self) -> bool:
        """Sends what there is by now; False if MLflow did not take it."""
        try:
            if self.run_id is None:
                self._send_earlier()
            self._delivery.send()
        except Exception as error:  # whatever a tracker throws, the training goes on
            self._failures += 1
            if self._failures == 1:
                warn(f"MLflow is out of reach; {self._kept()}", error)
            return False
        if self._failures:
            _log.warning("MLflow answers again, and has got what waited")
            self._failures = 0
        return True

    def _send_earlier(self) -> None:
        try:
            _send_left(before=self._journal.key)
        except StuckError as error:
            warn("Something that an earlier run has recorded stays on this machine", error)

    def _kept(self) -> str:
        return f"what this run records is kept in {self._journal.folder} and sent later (`lab sync`)"


def waiting() -> int:
    """How many journals were left behind, or are being written."""
    return len(left())


def send_left() -> int:
    """Sends all journals whose processes have ended without having sent them; how many.

    Raises:
        StuckError: MLflow does not take some of them, which are kept; all others were sent.
        Exception: whatever else MLflow throws; the journal it threw it for, and later ones, are kept.
    """
    return _send_left(before="~")


def _send_left(before: str) -> int:
    sent, stuck = 0, []
    for folder in left():
        if folder.name >= before:
            break
        journal = Journal.adopt(folder)
        if journal is None:
            continue
        delivery = Delivery(journal)
        try:
            delivery.send()
            delivery.abandon()
        except BaseException as error:
            journal.close()
            if not isinstance(error, Exception) or not delivery.answers():
                raise
            stuck.append(f"{folder}: {type(error).__name__}: {error}")
            continue
        journal.remove()
        sent += 1
    if stuck:
        raise StuckError("; ".join(stuck))
    return sent
