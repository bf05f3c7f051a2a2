"""A task: one stage of a dvc.yaml, as the runner and SLURM see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from lab.errors import LabError, nearest


@dataclass(frozen=True)
class Task:
    """One stage.

    Attributes:
        name: as DVC has it, `align@linear`.
        command: what it runs, in a shell.
        folder: where.
        file: its dvc.yaml.
        deps: files and folders that it reads, relative to `folder`.
        outs: those that it writes, metrics included.
        parents: names of the tasks whose outputs it takes.
        home: the folder that the runner works in; logs lie below its `.lab`.
    """

    name: str
    command: str
    folder: Path
    file: Path
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    parents: frozenset[str]
    home: Path

    @property
    def log(self) -> Path:
        return self.home / ".lab" / "logs" / f"{self.name}.log"


@dataclass
class Pipeline:
    """Tasks and what is known of them.

    Attributes:
        tasks: by name.
        stale: the tasks that are not up to date, by themselves or by files that are missing.
    """

    tasks: Mapping[str, Task]
    stale: set[str] = field(default_factory=set)

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """All that the named tasks need, themselves included."""
        return _reach({name: task.parents for name, task in self.tasks.items()}, names)

    def descendants(self, names: Iterable[str]) -> set[str]:
        """All that needs the named tasks, themselves included."""
        children: dict[str, set[str]] = {name: set() for name in self.tasks}
        for name, task in self.tasks.items():
            for parent in task.parents:
                children[parent].add(name)
        return _reach(children, names)

    def select(self, targets: Sequence[str]) -> set[str]:
        """Turn `align`, `align@linear` or `align@*` into tasks, with all that they need.

        Raises:
            LabError: a target that names no task.
        """
        chosen: set[str] = set()
        for target in targets:
            found = {name for name in self.tasks if name.split("@")[0] == target or fnmatchcase(name, target)}
            if not found:
                groups = {name.split("@")[0] for name in self.tasks}
                raise LabError(
                    f"no stage '{target}'{nearest(target, self.tasks if '@' in target else groups)}"
                )
            chosen |= found
        return self.ancestors(chosen) if targets else set(self.tasks)


def _reach(edges: Mapping[str, Iterable[str]], names: Iterable[str]) -> set[str]:
    reached: set[str] = set()
    border = list(names)
    while border:
        name = border.pop()
        if name not in reached:
            reached.add(name)
            border += edges[name]
    return reached
