"""Mixes: exact shares, no sample twice in an epoch, and order as a pure function of position."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.errors import LabError
from lab.samples.mixture import CYCLE, Mixture, StepBatches, schedule
from lab.samples.regions import Rows
from lab.scenes.tasks import SceneTasks

TASKS = ("caption", "vqa", "text", "text_to_image", "edit", "interleaved")


@pytest.mark.parametrize(
    ("mix", "counts"),
    [
        ({"caption": 1}, {"caption": 256}),
        ({"caption": 1, "vqa": 3}, {"caption": 64, "vqa": 192}),
        ({"caption": 0.5, "vqa": 0.25, "text": 0.25, "edit": 0}, {"caption": 128, "vqa": 64, "text": 64}),
        ({"caption": 1, "vqa": 1, "text": 1}, {"caption": 86, "vqa": 85, "text": 85}),
    ],
)
def test_shares_are_exact_over_a_cycle(mix: dict[str, float], counts: dict[str, int]) -> None:
    assert Counter(schedule(mix, TASKS)) == counts


@given(
    st.dictionaries(st.sampled_from(TASKS), st.floats(0, 100), min_size=1).filter(
        lambda m: sum(m.values()) > 0
    )
)
@settings(max_examples=60, deadline=None)
def test_any_weights_fill_a_cycle_within_one_of_their_share(mix: dict[str, float]) -> None:
    cycle = schedule(mix, TASKS)
    assert len(cycle) == CYCLE
    for task, weight in mix.items():
        assert abs(cycle.count(task) - CYCLE * weight / sum(mix.values())) <= 1


def test_tasks_are_spread_not_in_blocks() -> None:
    cycle = schedule({"caption": 1, "vqa": 1, "text_to_image": 2}, TASKS)
    for start in range(0, CYCLE, 16):
        assert Counter(cycle[start : start + 16])["text_to_image"] == pytest.approx(8, abs=1)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"captoin": 1.0}, "unknown task 'captoin' .did you mean 'caption'"),
        ({"caption": -1.0}, "weight of 'caption' is -1.0"),
        ({"caption": "much"}, "weight of 'caption' is 'much'"),
        ({"caption": True}, "weight of 'caption' is True"),
        ({"caption": 0.0}, "all weights are 0"),
        ({}, "all weights are 0"),
    ],
)
def test_a_wrong_mix_says_what_is_wrong(mix: dict[str, float], message: str) -> None:
    with pytest.raises(LabError, match=message):
        schedule(mix, TASKS)


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
