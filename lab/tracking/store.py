"""Where runs are kept: the MLflow store of a checkout, made once, whoever comes first.

Without ``MLFLOW_TRACKING_URI`` the store is ``mlflow.db`` at the root of the checkout, with ``mlartifacts/``
beside it, so that every pipeline of a clone meets in one UI. Anything else that MLflow takes is used as it
is: a server, or a PostgreSQL, which several machines may share.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

# A tracker that does not answer must not hold a training up: fail within seconds instead of minutes.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # what fails is kept and tried again
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "PGCONNECT_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}
_ADVISORY = 0x6C6162  # of PostgreSQL's locks the one that means "this database's runs"; any number would do
_LOUD = {
    "alembic": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,
    "mlflow.tracking.context.registry": logging.ERROR,
    "sqlalchemy.pool": logging.CRITICAL,
    "urllib3.connectionpool": logging.ERROR,
}


def enabled() -> bool:
    """Whether runs are recorded at all (``LAB_TRACKING=off`` switches that off)."""
    return os.environ.get("LAB_TRACKING", "on").lower() not in {"off", "0", "false", "no"}


def root() -> Path:
    """The folder that holds the store: the checkout, or else the outermost pipeline above the cwd."""
    here = Path.cwd()
    folders = [here, *here.parents]
    for folder in folders:
        if (folder / ".git").exists() or (folder / ".dvc").is_dir():
            return folder
    pipelines = [folder for folder in folders if (folder / "params.yaml").exists()]
    return pipelines[-1] if pipelines else here


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, else the checkout's own SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root() / 'mlflow.db'}"


def shown_uri() -> str:
    """The store's address as a person may see it, without a password."""
    return re.sub(r"(://[^/@:]*):[^@/]*@", r"\1:***@", tracking_uri())


def artifact_root() -> str | None:
    """Where a new experiment keeps its files; None lets a server decide."""
    uri = tracking_uri()
    if uri.startswith(("http:", "https:", "databricks")):
        return None
    database = _sqlite_path(uri)
    return ((database.parent if database else root()) / "mlartifacts").as_uri()


@contextmanager
def store_lock() -> Iterator[None]:
    """Holds the machine-wide lock of the store: one process at a time creates or reaps."""
    folder = root() / ".lab"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "tracking.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield  # the lock goes with the handle, also when the process is killed


@contextmanager
def locked_client(uri: str | None = None) -> Iterator[MlflowClient]:
    """A client of a store while this process holds its lock: of the machine, of a PostgreSQL everywhere.

    The store is created or migrated first where that is due.

    Args:
        uri: Of the store; that of this process if not stated.
    """
    _import()  # before the lock is taken: others need not wait for an import
    uri = uri or tracking_uri()
    with store_lock(), _database_lock(uri):
        yield _connect(uri)


@contextmanager
def _database_lock(uri: str) -> Iterator[None]:
    """Holds a lock in a PostgreSQL, which several machines may share; nothing with other stores."""
    if not uri.startswith("postgresql"):
        yield
        return
    from sqlalchemy import NullPool, create_engine, text

    engine = create_engine(uri, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:  # the lock goes with the connection, also when the process is killed
        connection.execute(text("SET lock_timeout = '60s'"))
        connection.execute(text(f"SELECT pg_advisory_lock({_ADVISORY})"))
        yield


def _connect(uri: str) -> MlflowClient:
    """A client of the store, which is created or migrated first where that is due."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    database = _sqlite_path(uri)
    if database is not None:
        if not database.exists() or database.stat().st_size == 0:
            _create(database)
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # stays in the file; readers block no writer
    try:
        return MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        if "out-of-date database schema" not in str(error):
            raise
        _migrate(uri)
        return MlflowClient(tracking_uri=uri)


def _import() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401  about 2 s, hence only here

    # Fifty migrations of a line each, and the retries of a server whose silence is reported anyway.
    for name, level in _LOUD.items():
        logging.getLogger(name).setLevel(level)


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _create(database: Path) -> None:
    """Makes the database under another name and renames it: nobody ever sees half a migration."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    draft = database.with_name(f"{database.name}.{os.getpid()}")
    for stale in database.parent.glob(f"{database.name}.[0-9]*"):  # of a process killed while creating
        stale.unlink(missing_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{draft}", artifact_root())
    store.engine.dispose()
    os.replace(draft, database)


def _migrate(uri: str) -> None:
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(uri)
    _upgrade_db(engine)
    engine.dispose()
