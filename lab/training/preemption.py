"""Signals: a run that is told to go saves its state at the end of a step, leaves, and says that it may go on.

SIGUSR1 (SLURM's notice ahead of a preemption or the time limit), SIGTERM and SIGINT all ask for this. While a
stage trains, a signal sets a flag and nothing else; who looks at the flag between two steps decides for all
processes of the run (`lab.training.ledger`). Outside training there is nothing to save: `Preempted` is raised
where the signal finds the program, as Python does with Ctrl-C. A second Ctrl-C always stops at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Preempted(KeyboardInterrupt):
    """The run left because of a signal; the same command goes on from its last checkpoint.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def code(self) -> int:
        """Exit code: 130 for Ctrl-C, otherwise 75 (`EX_TEMPFAIL`), which batch systems can requeue on."""
        return 130 if self.number == signal.SIGINT else 75

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}; the same command goes on from there"


class Paused(KeyboardInterrupt):
    """The run left because it was not to go on for now; its state is saved.

    Args:
        step: optimizer steps that it has done.
    """

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return f"paused at step {self.step}"


class _Listener:
    """What has arrived in this process, and whether it may be raised."""

    def __init__(self) -> None:
        self.received = 0  # the first signal
        self.deferred = False
        self._interrupts = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if self.received:  # on its way out already
            return
        self.received = number
        if not self.deferred:
            raise Preempted(number)


_listener = _Listener()


def install() -> None:
    """Makes signals raise `Preempted` from now on, for the rest of the process; called as it starts.

    A Ctrl-C that the process was started to ignore (a shell's job in the background) stays ignored. SIGUSR1
    and SIGTERM do not: batch scripts ignore them for themselves, and their children inherit that.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _listener)


@contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Keeps signals for the end of a step; gives a function that says which has arrived, 0 for none.

    Handlers are those of `install`, set for as long as the block lasts where the process has not set them.

    Raises:
        Preempted: a signal arrived before and was lost, which Python does to exceptions in a finaliser.
    """
    if _listener.received:
        raise Preempted(_listener.received)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    own = before[signal.SIGTERM] is not _listener
    if own:
        install()
    _listener.deferred = True
    try:
        yield lambda: _listener.received
    finally:
        _listener.deferred = False
        if own and threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
            _listener.__init__()  # type: ignore[misc]
