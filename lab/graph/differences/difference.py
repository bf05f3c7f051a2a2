"""What differs between two runs: seed, code, configuration, data, environment.

Inputs that differ are compared in their turn, up to the data, so that a difference is found at the stage
where it arose.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from lab.graph.differences.runs import Record, Runs
from lab.graph.differences.settings import plain
from lab.graph.node import REPOSITORY
from lab.tracking import names

ABSENT = "-"  # one side has no such setting, or no such input
_COMMITS = 1000  # that are searched for the text of a code file


@dataclass(frozen=True)
class Change:
    """One setting with its two values, `-` where a side does not have it."""

    key: str
    before: str
    after: str


@dataclass(frozen=True)
class FileChange:
    """One code file.

    Attributes:
        path: in the repository.
        state: "changed", "only in A" or "only in B".
        lines: added and removed from A to B; None where a text is no longer to be found.
    """

    path: str
    state: str
    lines: tuple[int, int] | None = None


@dataclass(frozen=True)
class Difference:
    """Two runs side by side.

    Attributes:
        before, after: the runs.
        seed: None if it is the same.
        configuration, environment: what differs; None where a side recorded nothing.
        code: likewise.
        results: files of the outputs that differ although both runs read the same; None where not known.
        inputs: stage -> the comparison of the runs whose outputs were taken, of all inputs; None where a side
            recorded none.
    """

    before: Record
    after: Record
    seed: Change | None
    configuration: tuple[Change, ...] | None
    environment: tuple[Change, ...] | None
    code: tuple[FileChange, ...] | None
    results: tuple[str, ...] | None
    inputs: Mapping[str, Difference] | None

    @property
    def same(self) -> bool:
        """Whether both read and wrote the same, as far as was recorded; where they did so does not matter."""
        if self.before.identity != self.after.identity or self.results:
            return False
        return all(pair.same for pair in (self.inputs or {}).values())

    @property
    def own(self) -> bool:
        """Whether it differs by itself, and not by its inputs alone."""
        if self.seed or self.configuration or self.code or self.before.stage != self.after.stage:
            return True
        below = (self.inputs or {}).values()
        if self.before.identity != self.after.identity:
            return all(pair.same for pair in below)  # for a reason that was not recorded
        return bool(self.results) and not any(pair.results for pair in below)


def compare(before: Record, after: Record, runs: Runs) -> Difference:
    """Compare two runs, and the runs that theirs follow from."""
    return _Comparison(runs).of(before, after)


class _Comparison:
    """One comparison: what was compared already, and texts of code that were found."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.pairs: dict[tuple[str, str], Difference] = {}
        self.texts: dict[tuple[str, str], str | None] = {}

    def of(self, before: Record, after: Record) -> Difference:
        key = str(before.folder or before.identity), str(after.folder or after.identity)
        if key not in self.pairs:
            self.pairs[key] = self._compare(before, after)
        return self.pairs[key]

    def _compare(self, before: Record, after: Record) -> Difference:
        read_alike = before.identity == after.identity
        inputs: dict[str, Difference] | None = None
        if before.inputs is not None and after.inputs is not None:
            stages = dict.fromkeys([*before.inputs, *after.inputs])
            inputs = {name: self.of(self._input(before, name), self._input(after, name)) for name in stages}
        seed, configuration = _settings(before, after)
        code: tuple[FileChange, ...] | None = None
        if read_alike:
            code = ()
        elif before.code is not None and after.code is not None:
            code = tuple(self._files(before.code, after.code))
        elif before.commit and after.commit:
            code = tuple(_between(before.commit, after.commit))
        environment = None
        if before.environment and after.environment:
            environment = tuple(_changes(before.environment, after.environment))
        results = None
        if read_alike and before.outputs is not None and after.outputs is not None:
            results = tuple(change.key for change in _changes(before.outputs, after.outputs))
        return Difference(before, after, seed, configuration, environment, code, results, inputs)

    def _input(self, record: Record, stage: str) -> Record:
        """An input of a run; nothing if the run does without."""
        known = stage in (record.inputs or {})
        return self.runs.input_of(record, stage) if known else Record(ABSENT, ABSENT, "")

    def _files(self, one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[FileChange]:
        changed = [path for path in sorted({*one, *other}) if one.get(path) != other.get(path)]
        wanted = {(path, side[path]) for path in changed for side in (one, other) if path in side}
        new = wanted - self.texts.keys()
        self.texts |= {**dict.fromkeys(new), **_texts(new)}
        for path in changed:
            pair = [self.texts[path, side[path]] if path in side else "" for side in (one, other)]
            known = [text for text in pair if text is not None]
            state = "changed" if path in one and path in other else f"only in {'A' if path in one else 'B'}"
            yield FileChange(path, state, _count(*known) if len(known) == 2 else None)


def _settings(before: Record, after: Record) -> tuple[Change | None, tuple[Change, ...] | None]:
    """The seeds, if they differ, and the other settings that do."""
    if before.parameters is None or after.parameters is None:
        return None, () if before.identity == after.identity else None
    one, other = plain(before.parameters), plain(after.parameters)
    if before.shortened or after.shortened:
        one, other = ({names.key(k): names.text(v) for k, v in side.items()} for side in (one, other))
    changes = list(_changes(one, other))
    seed = next((change for change in changes if change.key == "seed"), None)
    return seed, tuple(change for change in changes if change.key != "seed")


def _changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Change]:
    for key in sorted({*one, *other}):
        if key not in one or key not in other or one[key] != other[key]:
            yield Change(key, *(names.text(side[key]) if key in side else ABSENT for side in (one, other)))


def _texts(wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Texts of code files, from the checkout or from git's history, as far as they are there.

    Args:
        wanted: paths in the repository, each with its SHA-256 or the beginning of that.
    """
    left = set(wanted)
    found: dict[tuple[str, str], str] = {}

    def offer(path: str, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        for key in [key for key in left if key[0] == path and key[1] and digest.startswith(key[1])]:
            found[key] = content.decode(errors="replace")
            left.remove(key)

    for path in {path for path, _ in left}:
        if (REPOSITORY / path).is_file():
            offer(path, (REPOSITORY / path).read_bytes())
    paths = sorted({path for path, _ in left if not Path(path).is_absolute()})
    for path, content in _history(paths) if paths else ():
        if not left:
            break
        offer(path, content)
    return found


def _history(paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Every version of some files that git knows, the newest first."""
    log = _git(
        ["log", "--all", f"-{_COMMITS}", "--format=", "--raw", "--no-abbrev", "--no-renames", "--", *paths]
    )
    blobs: dict[tuple[str, str], None] = {}
    for line in log.decode(errors="replace").splitlines():
        marks, _, path = line.partition("\t")
        fields = marks.split()
        if len(fields) == 5 and set(fields[3]) != {"0"}:  # zeros stand for a file that was removed
            blobs[path, fields[3]] = None
    content = _git(["cat-file", "--batch"], "".join(f"{blob}\n" for _, blob in blobs).encode())
    for path, _ in blobs:
        head, _, content = content.partition(b"\n")
        size = int(head.split()[-1]) if head.split()[-1:] and head.split()[-1].isdigit() else 0
        yield path, content[:size]
        content = content[size + 1 :]


def _between(before: str, after: str) -> Iterator[FileChange]:
    """The code files that differ between two commits."""
    places = ("components", "lab")
    for line in _git(["diff", "--numstat", "--no-renames", before, after, "--", *places]).splitlines():
        added, removed, path = line.decode(errors="replace").split("\t")
        yield FileChange(path, "changed", (int(added), int(removed)) if added.isdigit() else None)


def _git(arguments: Sequence[str], text: bytes = b"") -> bytes:
    """What git prints, nothing where there is no git or no history."""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        return subprocess.run(command, input=text, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def _count(before: str, after: str) -> tuple[int, int]:
    """Lines added and removed."""
    one, other = before.splitlines(), after.splitlines()
    steps = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    changed = [(b - a, d - c) for kind, a, b, c, d in steps if kind != "equal"]
    return sum(added for _, added in changed), sum(removed for removed, _ in changed)


def causes_of(difference: Difference, seen: set[int]) -> Iterator[Difference]:
    """The comparisons that differ by themselves, those upstream first."""
    if id(difference) in seen:
        return
    seen.add(id(difference))
    for pair in (difference.inputs or {}).values():
        yield from causes_of(pair, seen)
    if difference.own:
        yield difference
