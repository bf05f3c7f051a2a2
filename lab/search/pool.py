"""Several workers on this machine: started together, replaced when they die, asked to leave together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from lab.errors import LabError
from lab.search.declaration import Declaration
from lab.search.storage import open_storage
from lab.search.trials import Trials
from lab.search.worker import Objective, Worker, training
from lab.training.preemption import Preempted, install

_GRACE = 60.0  # seconds that workers have to save their state and leave
_DEATHS = 5  # of every worker, in a row without a trial that ends between them


class Pool:
    """Workers of one study.

    Args:
        sweep: the declaration.
        url: of the storage, which is ready.
        wanted: trials that are to finish.
        objective: what a trial does; trains and evaluates if not stated.
    """

    def __init__(self, sweep: Declaration, url: str, wanted: int, objective: Objective | None) -> None:
        self._args = (sweep, url, wanted, objective)
        self._trials = Trials(sweep, open_storage(url), wanted)
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[SpawnProcess, tuple[int, Connection]] = {}

    def work(self, count: int) -> None:
        """Works until all trials are finished.

        Args:
            count: of workers.

        Raises:
            LabError: what a worker could not go on with, after all have left.
            KeyboardInterrupt: a signal asked to leave, after all have.
        """
        install()
        try:
            for number in range(1, count + 1):
                self._start(number)
            self._watch()
        finally:
            self._stop()

    def _start(self, number: int) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(*self._args, number, sender), daemon=False)
        process.start()
        sender.close()
        self._workers[process] = (number, receiver)

    def _watch(self) -> None:
        count, deaths, done = len(self._workers), 0, len(self._trials.finished())
        while self._workers:
            wait([process.sentinel for process in self._workers])
            for process in [one for one in self._workers if not one.is_alive()]:
                number, receiver = self._workers.pop(process)
                process.join()
                if process.exitcode == 0:
                    continue
                if (said := _last_words(receiver)) is not None:
                    raise LabError(said)
                if process.exitcode in (75, 130):
                    print(f"worker {number} was asked to leave; the others go on", flush=True)
                    continue
                now = len(self._trials.finished())
                deaths, done = (deaths + 1, done) if now == done else (1, now)
                if deaths > _DEATHS * count:
                    raise LabError(
                        f"{deaths} workers died in a row, the last with exit code {process.exitcode}"
                    )
                print(
                    f"worker {number} died (exit code {process.exitcode}); another takes its place",
                    flush=True,
                )
                self._start(number)
        if len(self._trials.finished()) < self._trials.wanted:
            raise LabError("all workers have left before the end; the same command goes on")

    def _stop(self) -> None:
        for process in self._workers:
            process.terminate()
        for process in self._workers:
            process.join(_GRACE)
            if process.is_alive():
                process.kill()
                process.join()


def _last_words(receiver: Connection) -> str | None:
    """The message of the error that a worker ended with, None where it just died."""
    try:
        return str(receiver.recv()) if receiver.poll() else None
    except EOFError:
        return None


def _work(
    sweep: Declaration, url: str, wanted: int, objective: Objective | None, number: int, sender: Connection
) -> None:
    """A worker's process."""
    install()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        trials = Trials(sweep, open_storage(url), wanted)
        Worker(trials, objective or training(), f"worker {number}").work()
    except LabError as error:
        sender.send(str(error))
        raise SystemExit(error.code) from None
    except Preempted as stop:
        raise SystemExit(stop.code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _leave_with_parent() -> None:
    """Nobody would see workers whose command is gone: they save their state and leave as well."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
