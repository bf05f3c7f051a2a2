"""Where studies are kept: a SQLite file, a journal, or a PostgreSQL server; made before any worker starts.

SQLite is for one worker: several that open a fresh file break each other, and later wait for each other. The
journal is a file that processes append to, each under a lock; it needs no server and no SQL. PostgreSQL is
for many workers, on many machines.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lab.errors import LabError, nearest
from lab.tracking.store import root

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JOURNAL = "journal:///"
_SCHEMES = ("sqlite:///", JOURNAL, "postgresql://", "postgresql+psycopg://")


def default_url(study: str, several: bool) -> str:
    """Where a study is kept unless somebody says otherwise.

    Args:
        study: its name. One that is in the journal stays there.
        several: whether there will be several workers; then a study moves from SQLite to the journal.
    """
    journal, single = _default(".journal"), _default(".db")
    return journal if several or study in studies(journal) else single


def moved_from(study: str, url: str) -> str:
    """The URL of the SQLite file that a study in the journal was begun in; "" where there is none."""
    single = _default(".db")
    return single if url == _default(".journal") and study in studies(single) else ""


def _default(suffix: str) -> str:
    scheme = JOURNAL if suffix == ".journal" else "sqlite:///"
    return f"{scheme}{root() / '.lab' / 'optuna'}{suffix}"


def open_storage(url: str, create: bool = False) -> BaseStorage:
    """Opens a storage.

    Args:
        url: `sqlite:///FILE`, `journal:///FILE` or `postgresql://...`.
        create: whether to make or migrate its tables: once, before workers start.

    Raises:
        LabError: an unknown kind of URL, no such server, no rights to the folder.
    """
    from optuna.exceptions import OptunaError
    from optuna.storages import JournalStorage, RDBStorage, get_storage
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.exc import SQLAlchemyError

    if not url.startswith(_SCHEMES):
        raise LabError(f"storage {url.partition('://')[0]}: unknown{nearest(url, _SCHEMES)}")
    try:
        if (file := _file(url)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        if file is not None and url.startswith(JOURNAL):
            return JournalStorage(JournalFileBackend(str(file), lock_obj=cast(Any, _Flock(file))))
        url = url.replace("postgresql://", "postgresql+psycopg://")
        options = {} if file else {"pool_pre_ping": True}
        storage = RDBStorage(
            url, engine_kwargs=options, skip_compatibility_check=create, skip_table_creation=not create
        )
        if create and storage.get_current_version() != storage.get_head_version():
            storage.upgrade()
        return get_storage(storage)  # remembers trials that are over
    except (ImportError, OSError, OptunaError, SQLAlchemyError) as error:
        raise LabError(f"storage {shown(url)}: {' '.join(str(error).split())[:300]}") from error


def studies(url: str) -> list[str]:
    """Names of the studies in a storage; nothing is made where there is none."""
    import optuna

    file = _file(url)
    if file is not None and (not file.exists() or not file.stat().st_size):
        return []
    return [study.study_name for study in optuna.get_all_study_summaries(open_storage(url))]


def shown(url: str) -> str:
    """A URL without its password."""
    from sqlalchemy.engine import make_url

    return url if url.startswith(JOURNAL) else make_url(url).render_as_string(hide_password=True)


def _file(url: str) -> Path | None:
    """The file behind a URL, None for a server."""
    scheme = next((one for one in ("sqlite:///", JOURNAL) if url.startswith(one)), None)
    return Path(url.removeprefix(scheme)).absolute() if scheme else None


class _Flock:
    """The journal's lock, which the kernel takes from a process that dies.

    Optuna's own locks are files whose mere being there means locked: after a kill everybody waits for half a
    minute until one is declared left behind. `flock` is what the lab's claims rely on as well; a network file
    system has to support it between machines: NFS does on Linux, Lustre if mounted with `flock`.

    Args:
        file: that is protected.
    """

    def __init__(self, file: Path) -> None:
        self._path = file.with_name(f"{file.name}.lock")
        self._handle: Any = None

    def acquire(self) -> bool:
        handle = self._path.open("a")
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._handle = handle
        return True

    def release(self) -> None:
        handle, self._handle = self._handle, None
        handle.close()


def broken(error: Exception) -> bool:
    """Whether an error is the storage's own, so that nothing is known about the trial at hand."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, StorageInternalError | SQLAlchemyError)
