"""A throw-away PostgreSQL server on this machine, on 127.0.0.1 and a port of its own.

Needs Debian's package `postgresql`, which root gets installed on the way, and nothing else of the system.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from debian import Unavailable, install

_PATIENCE = 60.0  # seconds for the server to come; one or two unless the machine is busy
# A test's data need not survive a power cut; connections of many workers, and of what was killed.
_SETTINGS = {"fsync": "off", "max_connections": "200", "shared_buffers": "32MB"}


class Postgres:
    """A server in a folder of its own; `databases` are made on it at will."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self._made = 0

    def start(self) -> None:
        """Starts the server, in the state in which it was left.

        Raises:
            Unavailable: it does not come up; says what its log says.
        """
        data = self.folder / "data"
        if not data.exists():
            self._run("initdb", "--auth=trust", "--username=lab", "--encoding=UTF8", f"--pgdata={data}")
        settings = {**_SETTINGS, "port": str(self.port), "listen_addresses": "127.0.0.1"}
        settings["unix_socket_directories"] = str(self.folder)
        with (self.folder / "log").open("a") as log:
            options = [f"--{name}={value}" for name, value in settings.items()]
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", str(data), *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                **_demoted(),  # type: ignore[call-overload]
            )
        end = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise Unavailable(f"PostgreSQL does not start: {(self.folder / 'log').read_text()[-500:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server and all connections to it."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(_PATIENCE)

    def new_database(self) -> str:
        """The URL of an empty database, `postgresql://...`."""
        self._made += 1
        name = f"lab_{self._made}"
        self.query(f"CREATE DATABASE {name}", "postgres")
        return f"postgresql://lab@127.0.0.1:{self.port}/{name}"

    def query(self, statement: str, database: str) -> str:
        """What psql prints of a statement's result, unaligned."""
        return self._run(
            "psql",
            *("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--host=127.0.0.1"),
            *(f"--port={self.port}", "--username=lab", f"--dbname={database}", f"--command={statement}"),
        )

    def _answers(self) -> bool:
        try:
            self.query("SELECT 1", "postgres")
        except Unavailable:
            return False
        return True

    def _run(self, program: str, *options: str) -> str:
        done = subprocess.run(
            [_program(program), *options],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            timeout=_PATIENCE,
            check=False,
            **_demoted(),  # type: ignore[call-overload]
        )
        if done.returncode:
            raise Unavailable(f"{program}: {' '.join(done.stderr.split())[-500:]}")
        return done.stdout


@contextmanager
def temporary_postgres() -> Iterator[Postgres]:
    """A running server in a fresh folder, both gone afterwards.

    Raises:
        Unavailable: there can be none on this machine.
    """
    if _find("postgres") is None:
        install("PostgreSQL", ["postgresql"])
    folder = Path(tempfile.mkdtemp(prefix="lab-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        server = Postgres(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _demoted() -> dict[str, object]:
    """PostgreSQL refuses to be root's."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _program(name: str) -> str:
    found = _find(name)
    if found is None:
        raise Unavailable(f"PostgreSQL's program {name} is not there")
    return found


def _find(name: str) -> str | None:
    """Debian keeps the server's programs out of the path, a folder for each version."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
