"""One writer of dvc.lock: what DVC knows of a task is read, restored and recorded through DVC itself.

A `dvc repro` of each task would cost a second of imports and a lock that all wait for; here DVC is loaded
once and each record costs tens of milliseconds. Plain `dvc repro` afterwards finds nothing to do.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml

from lab.errors import LabError
from lab.graph.hashing import Hashed, files_in, hashed
from lab.graph.snapshot import Snapshot
from lab.graph.task import Pipeline, Task

Verdict = Literal["unchanged", "from cache", "run"]

_ROOM = 8 << 20  # bytes that have to be free beside those that an output takes in the cache


class DamageError(Exception):
    """An output on disk is not what was recorded of it.

    Attributes:
        task: whose output it is.
        path: of the output.
    """

    def __init__(self, task: str, path: Path) -> None:
        super().__init__(f"{path} is not what {task} has published")
        self.task, self.path = task, path


class Recorder:
    """Reads and writes DVC's records of the tasks below one folder.

    Args:
        folder: any folder of the checkout.
        snapshot: the code that tasks run, None where they run the checkout's.
    """

    def __init__(self, folder: Path, snapshot: Snapshot | None = None) -> None:
        from dvc.repo import Repo

        self.snapshot = snapshot
        with _told():
            _need_room(folder, _ROOM)
            self.repo = Repo(str(folder), _wait_for_lock=True)
            self._mend()
        self._judged: dict[str, Any] = {}  # DVC's stages of tasks that were judged and did not run yet
        self._code: dict[Path, Hashed | None] = {}  # of the snapshot, which stays as it is
        self._published: dict[Path, tuple[str, str]] = {}  # output -> its task and MD5

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.repo.close()

    def trust(self, tasks: Iterable[Task]) -> None:
        """Take what dvc.lock says of tasks that are up to date as what their outputs have to be."""
        with _told():
            for task in tasks:
                self._expect(task, self._stage(task))

    def judge(self, task: Task) -> Verdict:
        """Say whether a task has to run; bring its outputs back where DVC's cache has them.

        Raises:
            DamageError: an output that it takes is not what was published; every byte of it was looked at.
            LabError: DVC cannot read its files, or a dependency is missing.
        """
        from dvc.stage.cache import RunCacheNotFoundError
        from dvc_data.hashfile.hash_info import HashInfo

        with _told(), self.repo.lock:
            stage = self._stage(task)
            recorded = {dep.def_path: dep.hash_info for dep in stage.deps}
            self._hash_dependencies(task, stage)
            same = all(dep.hash_info == recorded[dep.def_path] for dep in stage.deps)
            if same and not stage.cmd_changed and not any(out.status() for out in stage.outs):
                self._expect(task, stage)
                return "unchanged"
            if not same or stage.cmd_changed:  # what dvc.lock has of the outputs is not what they are to be
                for out in stage.outs:
                    out.hash_info = HashInfo()
            stage.save_deps = lambda **options: None  # they are what the snapshot has
            try:
                self.repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                self._judged[task.name] = stage
                return "run"
            stage.save_outs()
            if damaged := [out for out in stage.outs if self._differs(out)]:
                self._forget(damaged)
                self._judged[task.name] = stage
                return "run"
            self._write(task, stage)
            return "from cache"

    def record(self, task: Task) -> None:
        """Put a task that has run into dvc.lock and its outputs into the cache.

        Raises:
            LabError: an output is missing.
        """
        with _told(), self.repo.lock:
            stage = self._judged.pop(task.name, None)
            if stage is None:
                stage = self._stage(task)
                self._hash_dependencies(task, stage)
            places = [Path(out.fs_path) for out in stage.outs]
            _need_room(Path(self.repo.root_dir), _ROOM + sum(map(_size, places)))
            stage.save_outs()
            self._write(task, stage)

    def discard(self, task: Task) -> None:
        """Remove a task's outputs, which are damaged."""
        for place in task.outs:
            path = task.folder / place
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            self._published.pop(path, None)

    def read_pipeline(self, file: Path) -> Pipeline:
        """Ask DVC for the stages of a dvc.yaml, their edges and what is out of date.

        Raises:
            LabError: DVC cannot read it.
        """
        from dvc.dependency import ParamsDependency

        with _told():
            stages = self.repo.stage.load_all(str(file))
            names = {stage.addressing: stage.name for stage in stages}
            parents: dict[str, set[str]] = {name: set() for name in names.values()}
            for stage, needed in self.repo.index.graph.edges:
                if stage.addressing in names and needed.addressing in names:
                    parents[names[stage.addressing]].add(names[needed.addressing])
            stale = {names[address] for address in self.repo.status(targets=[str(file)]) if address in names}
        tasks = {
            stage.name: Task(
                name=stage.name,
                command=stage.cmd if isinstance(stage.cmd, str) else " && ".join(stage.cmd),
                folder=Path(stage.wdir),
                file=file,
                deps=tuple(d.def_path for d in stage.deps if not isinstance(d, ParamsDependency)),
                outs=tuple(out.def_path for out in stage.outs),
                parents=frozenset(parents[stage.name]),
                home=file.parent,
            )
            for stage in stages
        }
        return Pipeline(tasks, stale)

    def _stage(self, task: Task) -> Any:
        return self.repo.stage.load_one(str(task.file), task.name)

    def _hash_dependencies(self, task: Task, stage: Any) -> None:
        """Give a stage the hashes of its dependencies as they are now, of code as it was when submitted."""
        from dvc.dependency import ParamsDependency
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.meta import Meta

        for dep in stage.deps:
            if isinstance(dep, ParamsDependency):
                dep.save()
                continue
            path = Path(dep.fs_path)
            try:
                found = self._of_snapshot(path) or hashed(path)
            except OSError as error:
                raise LabError(f"{task.name}: {dep.def_path}, which it reads, is missing") from error
            owner, published = self._published.get(path, ("", found.md5))
            if found.md5 != published:
                raise DamageError(owner, path)
            dep.hash_info = HashInfo("md5", found.md5)
            dep.meta = Meta(size=found.size, nfiles=found.files, isdir=found.files is not None)
            dep.get_hash = partial(getattr, dep, "hash_info")  # DVC would hash it again, several times

    def _of_snapshot(self, path: Path) -> Hashed | None:
        if path not in self._code:
            self._code[path] = None if self.snapshot is None else self.snapshot.hashed(path)
        return self._code[path]

    def _mend(self) -> None:
        """Remove what DVC notes of who works on what, if its writer was killed and left half a file."""
        path = Path(self.repo.tmp_dir, "rwlock")
        with suppress(FileNotFoundError), self.repo.lock:
            try:
                json.loads(path.read_text())
            except ValueError:
                path.unlink()

    def _write(self, task: Task, stage: Any) -> None:
        stage.md5 = stage.compute_md5()
        self.repo.stage_cache.save(stage)
        for out in stage.outs:  # not stage.commit(), which notes in a file of DVC's that it does
            out.commit()
        self._dump(task, stage)
        self._expect(task, stage)

    def _dump(self, task: Task, stage: Any) -> None:
        """Write dvc.lock as DVC does, but in one piece: who kills DVC while it writes leaves half a file."""
        from dvc.stage.serialize import to_lockfile

        path = task.file.with_name("dvc.lock")
        try:
            tree = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader) or {}
        except FileNotFoundError:
            tree = {}
        tree = {"schema": "2.0", **tree, "stages": tree.get("stages", {}) | to_lockfile(stage)}
        draft = task.home / ".lab" / f"dvc.lock.{os.getpid()}"
        with draft.open("w", encoding="utf-8") as file:
            yaml.dump(tree, file, _Dumper, sort_keys=False, allow_unicode=True)
        os.replace(draft, path)

    def _expect(self, task: Task, stage: Any) -> None:
        for out in stage.outs:
            if out.hash_info:
                self._published[Path(out.fs_path)] = task.name, out.hash_info.value

    def _differs(self, out: Any) -> bool:
        """Whether an output that came from the cache is not what its name in the cache says."""
        try:
            return hashed(Path(out.fs_path)).md5 != out.hash_info.value
        except OSError:
            return True

    def _forget(self, outs: Iterable[Any]) -> None:
        """Remove damaged outputs, and what the cache has of them: it would come back from there."""
        for out in outs:
            path = Path(out.fs_path)
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            for oid in {
                out.hash_info.value,
                *(entry[2].value for entry in out.obj or () if out.hash_info.isdir),
            }:
                Path(out.cache.oid_to_path(oid)).unlink(missing_ok=True)


class _Dumper(yaml.CSafeDumper):
    """Writes the ordered mappings of DVC as mappings."""


_Dumper.add_representer(OrderedDict, lambda dumper, data: dumper.represent_dict(data.items()))


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for _, file in files_in(path))
    return path.stat().st_size if path.exists() else 0


def _need_room(place: Path, size: int) -> None:
    """Stop where the disk is about full: DVC's database would try again for ever.

    Raises:
        LabError: fewer bytes are free.
    """
    free = shutil.disk_usage(place).free
    if free < size:
        raise LabError(
            f"{place}: {free >> 20} MB of space are left on the disk and {size >> 20} are needed; "
            "make some space and run the same command again"
        )


@contextmanager
def _told() -> Iterator[None]:
    """DVC's complaints in one line."""
    import logging

    from dvc.exceptions import DvcException

    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # at ERROR it draws progress bars
    try:
        yield
    except DvcException as error:
        raise LabError(" ".join(f"DVC: {error}".split())) from error
