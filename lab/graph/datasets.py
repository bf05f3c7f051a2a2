"""Data sets that mixes name: where they lie, what they hold, and that a stage depends on them.

The index of a data set (lab/samples/index.py) is kept in `.lab/data` beside the folder that it is in; its
name is a hash of the data set's content, its format and the readers' code, so a stale one is never used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab.config import DataSetParams, Params, read_tree
from lab.errors import LabError, nearest
from lab.graph.hashing import Memory
from lab.graph.node import REPOSITORY
from lab.graph.stages import data_sets_of

if TYPE_CHECKING:
    from lab.samples.datasets import DataSet

FOLDER = "datasets"
KEPT = Path(".lab", "data")
QUARANTINE = "quarantine"
_CODE = ("lab/samples/readers", *(f"lab/samples/{name}.py" for name in ("index", "indexing", "images")))


def registered(folder: Path) -> Mapping[str, object]:
    """The entries of data sets in the params.yaml of a folder; none where there is no such file."""
    file = folder / "params.yaml"
    found = read_tree(file).get("datasets") if file.exists() else None
    return found if isinstance(found, Mapping) else {}


def locate(entry: DataSetParams, folder: Path) -> Path:
    """The folder of a data set, looked for in the pipeline's folder and those above it.

    Raises:
        LabError: there is none.
    """
    for place in (folder.resolve(), *folder.resolve().parents):
        if (found := place / entry.path).is_dir():
            return found
    raise LabError(
        f"data set in {entry.path}: no such folder in {folder} or above; `dvc pull {entry.path}` fetches it "
        "if it was pushed, `lab data import` makes it anew"
    )


def hash_of(root: Path, kept: Path | None = None) -> str:
    """The hash of a data set's files as DVC has it; computed anew only where a file has changed."""
    memory = Memory((kept or _kept(root)) / f"hash-{_short(str(root))}.json")
    found = memory.md5(root)
    memory.save()
    return str(found)


def hashes_of(entries: Mapping[str, DataSetParams], folder: Path) -> dict[str, str]:
    """`datasets/NAME` -> hash, as the identity of a stage has it.

    Args:
        entries: of the data sets that the stage reads.
        folder: of the pipeline.
    """
    return {f"{FOLDER}/{name}": hash_of(locate(entry, folder)) for name, entry in entries.items()}


def open_data_set(name: str, entry: DataSetParams, folder: Path) -> DataSet:
    """A data set with its index, which is built where there is none of its present content.

    Raises:
        LabError: it is not there, cannot be read, or holds bad records that its policy does not leave out.
    """
    from lab.samples.datasets import check_policy, quarantine

    root = locate(entry, folder)
    data = indexed(name, entry, root)
    check_policy(data)
    if entry.policy == "quarantine" and data.skipped:
        quarantine(data, root.parent.parent / QUARANTINE / name)
    return data


def indexed(name: str, entry: DataSetParams, root: Path, kept: Path | None = None) -> DataSet:
    """A data set whose folder is known, whatever its policy.

    Args:
        name, entry: as it is, or would be, registered.
        root: its folder.
        kept: where indices are kept, if not beside it.
    """
    from lab.samples.datasets import DataSet
    from lab.samples.index import Index
    from lab.samples.indexing import build

    code = "".join(file.read_text() for place in _CODE for file in _files(REPOSITORY / place))
    key = _short(f"{hash_of(root, kept)}/{entry.format}/{entry.limit}/{code}")
    place = (kept or _kept(root)) / key
    with _alone(place.with_suffix(".lock")):
        whole = (place / "index.json").exists()
        index = Index(root, place) if whole else build(root, entry.format, entry.limit, place)
    return DataSet(name, entry, index)


def check_declared(folder: Path, params: Params, stage: str, given: Mapping[str, str]) -> None:
    """Refuses a stage of a hand-written dvc.yaml that does not depend on a data set which its mix names.

    Raises:
        LabError: with the lines to add.
    """
    import yaml

    names, file = data_sets_of(params, stage, given), folder / "dvc.yaml"
    if not names or not file.exists():
        return
    declared = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("stages", {}).get(stage)
    if declared is None:
        return
    declared = declared.get("do", declared)
    for key, lines in (
        ("params", [f"datasets.{name}" for name in names]),
        ("deps", [params.datasets[name].path for name in names]),
    ):
        stated = [str(one).removeprefix("${root}/") for one in declared.get(key, ()) if isinstance(one, str)]
        for line in lines:
            if line not in stated:
                raise LabError(
                    f"{file}: stage '{stage}' reads a data set that it does not depend on; "
                    f"add `- {line}` to its {key}"
                )


def entry_of(name: str, entries: Mapping[str, DataSetParams]) -> DataSetParams:
    """The entry of a registered data set.

    Raises:
        LabError: there is none.
    """
    if name not in entries:
        raise LabError(f"no data set '{name}' in params.yaml{nearest(name, entries)}")
    return entries[name]


def _kept(root: Path) -> Path:
    """Where what is known of a data set is kept: beside the folder that it is in."""
    home = root.parent.parent if root.parent.name == FOLDER else root.parent
    return home / KEPT


def _files(place: Path) -> Sequence[Path]:
    return [place] if place.is_file() else sorted(place.glob("*.py"))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time builds an index; the others wait and find it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
