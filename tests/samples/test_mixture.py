"""Mixes: exact shares, no sample twice in an epoch, and order as a pure function of position."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from lab.errors import LabError
from lab.samples.mixture import Mixture, StepBatches
from lab.samples.regions import Rows
from lab.samples.segments import Sample, answer, question
from lab.scenes.tasks import SceneTasks


@dataclass(frozen=True)
class Lines:
    """A source of `rows` samples whose answers have `words` words."""

    name: str
    number: int
    rows: int
    words: int = 1

    def __len__(self) -> int:
        return self.rows

    def sample(self, row: int, seed: int) -> Sample:
        said = (question("q"), answer(" ".join(["a"] * self.words)))
        return Sample(f"{self.name}/{row}/{seed}", "vqa", said)


def drawn(mix: dict[str, Any], length: int, **sources: Lines) -> list[str]:
    """Ids of all samples of a stage, without the seed of their phrasing."""
    mixture = Mixture(
        sources, mix, length, 0, lambda sample: len((sample.segments[-1].text or "").split()) + 1
    )
    return [mixture[position].id.rpartition("/")[0] for position in range(length)]


def test_at_most_so_many_rows_and_passes() -> None:
    few, many = Lines("few", 0, 40), Lines("many", 1, 1000)
    tree = {"of": {"few": {"epochs": 2}, "many": {"weight": 3, "rows": 70}}}
    found = Counter(drawn(tree, 600, few=few, many=many))
    assert {count for name, count in found.items() if name.startswith("few")} == {2}
    assert len([name for name in found if name.startswith("few")]) == 40
    rows = [name for name in found if name.startswith("many")]
    assert len(rows) == 70
    assert {found[name] for name in rows} <= {7, 8}  # 520 samples of 70 rows, none twice as often as another


def test_shares_of_tokens_are_those_asked_for() -> None:
    short, long = Lines("short", 0, 50, words=2), Lines("long", 1, 50, words=18)
    found = drawn({"count": "tokens", "of": {"short": 1, "long": 3}}, 2560, short=short, long=long)
    tokens = {"short": 0, "long": 0}
    for name in found:
        source = name.partition("/")[0]
        tokens[source] += {"short": 2 + 1, "long": 18 + 1}[source]  # with the end
    assert tokens["long"] / tokens["short"] == pytest.approx(3, rel=0.02)


def test_the_same_samples_whoever_asks_in_whatever_order() -> None:
    sources = {"few": Lines("few", 0, 40), "many": Lines("many", 1, 1000)}
    tree = {"of": {"few": {"weight": {"0%": 4, "80%": 0}, "epochs": 3}, "many": 1}}
    whole = [Mixture(sources, tree, 500, 3)[position].id for position in range(500)]
    again = Mixture(sources, tree, 500, 3)
    assert [again[position].id for position in reversed(range(500))] == whole[::-1]
    with pytest.raises(IndexError):
        again[500]


def test_what_a_mix_cannot_draw_is_said() -> None:
    sources = {"few": Lines("few", 0, 40), "none": Lines("none", 1, 0)}
    with pytest.raises(LabError, match=r"unknown task 'fwe' .did you mean 'few'.*unknown task 'x'"):
        Mixture(sources, {"fwe": 1, "x": 1}, 10, 0)
    with pytest.raises(LabError, match="no samples in none"):
        Mixture(sources, {"none": 1}, 10, 0)
    with pytest.raises(LabError, match="run out after 80 samples, but the stage takes 100"):
        Mixture(sources, {"of": {"few": {"epochs": 2}}}, 100, 0)
    with pytest.raises(LabError, match="shares of tokens are for stages with a language model"):
        Mixture(sources, {"of": {"few": 1}, "count": "tokens"}, 10, 0)


def test_a_sample_is_a_pure_function_of_its_position(tasks: SceneTasks) -> None:
    mix = {"caption": 1.0, "vqa": 2.0, "text": 1.0}
    one, two = (Mixture(tasks.sources(), mix, 3000, seed=4) for _ in range(2))
    forward = [one[position].id for position in range(1500)]
    assert [two[position].id for position in reversed(range(1500))] == forward[::-1]
    assert one[3].id == forward[3]  # also after having gone elsewhere
    assert [Mixture(tasks.sources(), mix, 3000, seed=5)[position].id for position in range(20)] != forward[
        :20
    ]


def test_no_scene_comes_twice_before_all_have_come(tasks: SceneTasks) -> None:
    mixture = Mixture(tasks.sources(), {"caption": 1.0, "text": 3.0}, 3000, seed=0)
    seen: dict[str, list[int]] = {"caption": [], "text": []}
    for position in range(2400):
        sample = mixture[position]
        seen[sample.task].append(int(sample.id.split("/")[1]))
    epochs = [seen["text"][start : start + len(tasks)] for start in range(0, 1800, len(tasks))]
    for epoch in epochs:
        assert sorted(epoch) == list(range(len(tasks)))
    assert epochs[0] != epochs[1]
    assert epochs[0] != seen["caption"][: len(tasks)]


def test_a_second_epoch_phrases_anew(tasks: SceneTasks) -> None:
    mixture = Mixture(tasks.sources(), {"text": 1.0}, 2000, seed=0)
    by_row: dict[str, set[str]] = {}
    for position in range(2 * len(tasks)):
        sample = mixture[position]
        text = " ".join(segment.text or "" for segment in sample.segments)
        by_row.setdefault(sample.id.split("/")[1], set()).add(text)
    assert sum(len(texts) == 2 for texts in by_row.values()) > 0.9 * len(tasks)


def test_batches_are_numbered_and_start_where_asked() -> None:
    whole = list(StepBatches(4, 5, lambda: 0))
    assert whole == [list(range(4 * step, 4 * step + 4)) for step in range(5)]
    assert list(StepBatches(4, 5, lambda: 3)) == whole[3:]
    assert len(StepBatches(4, 5, lambda: 3)) == 5
    done = [0]
    batches = StepBatches(4, 5, lambda: done[0])
    done[0] = 2  # what is asked counts when iteration starts, not when the sampler is made
    assert list(batches) == whole[2:]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_processes_share_each_batch_without_overlap_or_loss(world: int) -> None:
    whole = list(StepBatches(6, 5, lambda: 0))
    parts = [list(StepBatches(6, 5, lambda: 0, rank, world)) for rank in range(world)]
    for step in range(5):
        assert sorted(position for part in parts for position in part[step]) == whole[step]
        assert {len(part[step]) for part in parts} == {6 // world}
    with pytest.raises(LabError, match="batch_size 6 does not divide evenly among 4 processes"):
        StepBatches(6, 5, lambda: 0, 0, 4)


def test_rows_come_once_an_epoch_in_an_order_of_their_position() -> None:
    rows = Rows(10, seed=3)
    order = [rows[position] for position in range(30)]
    for start in (0, 10, 20):
        assert sorted(order[start : start + 10]) == list(range(10))
    assert order[:10] != order[10:20]
    assert [Rows(10, seed=3)[position] for position in (25, 3, 14)] == [order[25], order[3], order[14]]
