"""Plans: exact shares, spread evenly, as a pure function of the position."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.errors import LabError
from lab.samples.plan import CYCLE, Course, Even, Plan

TASKS = ("caption", "vqa", "text", "text_to_image", "edit", "interleaved")


def check(plan: Plan, length: int) -> Counter[str]:
    """Places agree with `drawn`, and number the samples of each source without gap or repetition."""
    seen: Counter[str] = Counter()
    for position in range(length):
        assert {source: count for source, count in plan.drawn(position).items() if count} == seen
        source, number = plan.place(position)
        assert number == seen[source]
        seen[source] += 1
    return seen


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
    assert check(Even(mix), CYCLE) == counts


@given(
    st.dictionaries(st.sampled_from(TASKS), st.floats(0, 100), min_size=1).filter(
        lambda m: sum(m.values()) > 0
    )
)
@settings(max_examples=40, deadline=None)
def test_any_weights_fill_a_cycle_within_one_of_their_share(mix: dict[str, float]) -> None:
    plan = Even(mix)
    length = len(plan.pattern)
    for task, weight in mix.items():
        assert abs(plan.pattern.count(task) - length * weight / sum(mix.values())) <= 1


def test_a_small_weight_gets_its_place_in_a_longer_pattern() -> None:
    plan = Even({"caption": 4000, "vqa": 1})
    assert plan.drawn(400_000)["vqa"] == pytest.approx(100, rel=0.1)


def test_tasks_are_spread_not_in_blocks() -> None:
    pattern = Even({"caption": 1, "vqa": 1, "text_to_image": 2}).pattern
    for start in range(0, CYCLE, 16):
        assert Counter(pattern[start : start + 16])["text_to_image"] == pytest.approx(8, abs=1)


def test_shares_move_and_stay_exact_over_all() -> None:
    plan = Course(lambda share: {"a": 1 - share, "b": share, "c": 0.5}, {}, 3001)
    seen = check(plan, 3001)
    for name in "abc":
        assert seen[name] == pytest.approx(3001 / 3, abs=2)
    early, late = plan.drawn(300), {name: seen[name] - plan.drawn(2701)[name] for name in "abc"}
    assert early["a"] == pytest.approx(300 * 0.95 / 1.5, abs=2)
    assert late["a"] == pytest.approx(300 * 0.05 / 1.5, abs=2)


def test_a_source_that_has_run_out_leaves_its_share_to_the_others() -> None:
    plan = Course(lambda share: {"a": 2, "b": 1, "c": 1}, {"a": 100, "b": 300}, 1000)
    seen = check(plan, 1000)
    assert seen == {"a": 100, "b": 300, "c": 600}
    assert plan.drawn(190)["a"] == pytest.approx(95, abs=2)  # as its weight has it, until it is used up
    assert plan.drawn(210)["a"] == 100
    assert plan.drawn(600)["b"] == pytest.approx(250, abs=3)


def test_nothing_left_to_draw_is_said_before_training() -> None:
    with pytest.raises(LabError, match="run out after 400 samples, but the stage takes 1000"):
        Course(lambda share: {"a": 2, "b": 1}, {"a": 100, "b": 300}, 1000)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=2, max_size=4),
    st.integers(1, 700),
)
@settings(max_examples=40, deadline=None)
def test_any_course_gives_each_source_its_share(ends: list[tuple[float, float]], length: int) -> None:
    names = [f"s{index}" for index in range(len(ends))]

    def weights(share: float) -> dict[str, float]:
        moved = {name: one + (two - one) * share for name, (one, two) in zip(names, ends, strict=True)}
        return {**moved, "always": 1.0}

    plan = Course(weights, {}, length)
    wanted = dict.fromkeys([*names, "always"], 0.0)
    for start in range(0, length, plan.stretch):
        size = min(plan.stretch, length - start)
        found = weights((start + size / 2) / length)
        for name, weight in found.items():
            wanted[name] += size * weight / sum(found.values())
    for name, count in plan.drawn(length).items():
        assert abs(count - wanted[name]) <= 1 + 1e-6
