"""A real `mlflow server` on 127.0.0.1, that may be killed, stopped and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

_PATIENCE = 120.0  # seconds until it answers; about ten unless the machine is busy


class MlflowServer:
    """A server of one store, which keeps its port over restarts.

    Args:
        store: URI of what it serves.
        folder: for artifacts and its log.
    """

    def __init__(self, store: str, folder: Path) -> None:
        self._store, self._folder = store, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self._store]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + _PATIENCE
        while not self._answers():
            log_text = (self._folder / "server.log").read_text()
            assert self._process.poll() is None, log_text
            assert time.monotonic() < end, log_text
            time.sleep(0.1)

    def kill(self) -> None:
        """Ends it and its workers with SIGKILL."""
        self.send(signal.SIGKILL)
        self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to it and its workers: SIGSTOP makes it hang, SIGCONT go on."""
        os.killpg(self._process.pid, number)

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=5):
                return True
        except (URLError, OSError):
            return False


@contextmanager
def running_server(store: str, folder: Path) -> Iterator[MlflowServer]:
    """A server for as long as the block lasts."""
    server = MlflowServer(store, folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
