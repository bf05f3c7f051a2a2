"""`lab data check`: what training data and evaluation sets share, registered sets and the built-in world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.config import SPLITS, load_params
from lab.errors import LabError
from lab.graph.datasets import entry_of, indexed, locate
from lab.samples.leakage import Kind, Seen, leaks

if TYPE_CHECKING:
    from lab.samples.datasets import DataSet

WORLD = "built-in world"  # its images are compared for equality alone: all of its scenes look alike


@dataclass(frozen=True)
class Found:
    """A row of an evaluation set that training data know.

    Attributes:
        kind: what they share; distance: bits in which the fingerprints of near images differ.
        held_out, training: data set, split and place of each.
    """

    kind: Kind
    held_out: str
    training: str
    distance: int


@dataclass(frozen=True)
class _Part:
    """One split of one set."""

    name: str
    split: str
    seen: Seen
    place: Callable[[int], str]


def check_leakage(names: Sequence[str]) -> tuple[list[Found], list[str]]:
    """Compares every training split with every evaluation split.

    Args:
        names: of registered data sets; none for all of them, and the built-in world where its stage has run.

    Returns:
        What was found, and what was compared ("photos/train: 120 images").

    Raises:
        LabError: an unknown name, or nothing to compare.
    """
    folder = Path.cwd()
    entries = load_params(folder / "params.yaml").datasets
    parts = []
    for name in names or entries:
        entry = entry_of(name, entries)
        data = indexed(name, entry, locate(entry, folder))
        parts += [_data_set(data, split) for split in SPLITS]
    if not names:
        parts += _world(folder)
    parts = [part for part in parts if part.seen.rows or part.seen.asked]
    if not parts:
        raise LabError("no data set is registered in params.yaml, and the stage `data` has not run")
    found = [
        Found(leak.kind, held_out.place(leak.held_out), training.place(leak.training), leak.distance)
        for held_out in parts
        for training in parts
        if held_out.split != "train" and training.split == "train"
        for leak in leaks(training.seen, held_out.seen)
    ]
    return found, [f"{part.name}/{part.split}: {len(part.seen.rows)} images" for part in parts]


def _data_set(data: DataSet, split: str) -> _Part:
    from lab.samples.tokenizer import plain_words

    seen = Seen()
    for number in data.rows(split):
        row = data.index.row(int(number))
        asked = [piece for who, pieces in row.turns if who == "user" for piece in pieces]
        said = " ".join(word for piece in asked if isinstance(piece, str) for word in plain_words(piece))
        shots = row.shots
        seen.add(int(number), (shot.digest for shot in shots), (shot.hash for shot in shots), said)

    def place(number: int) -> str:
        return f"{data.name}/{split} ({data.index.row(number).place})"

    return _Part(data.name, split, seen, place)


def _world(folder: Path) -> list[_Part]:
    """The splits of the built-in world that the stage `data` of this pipeline has written."""
    if not (folder / "output" / "data" / "scenes-test.npz").exists():
        return []
    from lab.graph.context import world_of
    from lab.scenes.tasks import SceneTasks
    from lab.scenes.world import read_split

    world, parts = world_of(load_params(folder / "params.yaml")), []
    for split in SPLITS:
        tasks, seen = SceneTasks(read_split(folder / "output" / "data", world, split)), Seen()  # type: ignore[arg-type]
        for row in range(len(tasks)):
            seen.add(row, [tasks.picture(row).key], [], "")
        parts.append(_Part(WORLD, split, seen, lambda row, split=split: f"{WORLD}/{split} (scene {row})"))  # type: ignore[misc]
    return parts
