"""Whether the numbers bear out what an ablation claims, and how many seeds would decide it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lab.errors import LabError, nearest
from lab.evaluation.statistics import MOST_SEEDS, Seeds, seeds_needed
from lab.reports.ablation.design import Claim, Design, DesignedArm
from lab.reports.ablation.estimates import Ends, Estimate, Measured
from lab.reports.ablation.results import Results
from lab.reports.measures import Measure, measure_of

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"


@dataclass(frozen=True)
class Matching:
    """Arms of the two sides, matched by the levels of all other factors.

    Attributes:
        pairs: For each setting of the others: arms of the better side, arms of the worse side.
        over: The other factors, over which the difference is averaged.
    """

    pairs: tuple[tuple[tuple[DesignedArm, ...], tuple[DesignedArm, ...]], ...]
    over: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What became of the claim.

    Attributes:
        claim: As declared.
        measure: The metric that decides.
        word: supported, contradicted or undecided.
        reason: The numbers behind it, in sentences.
        estimate: The contrast, in the metric's unit: better side less worse side, so that a positive value is
            for the claim also where less is better. None while no seed has a matched pair.
        seeds: How many would decide it; None where a pilot's spread is unknown.
        plan: What that means, in a sentence.
    """

    claim: Claim
    measure: Measure
    word: str
    reason: str
    estimate: Estimate | None
    seeds: Seeds | None
    plan: str

    @property
    def ends(self) -> Ends | None:
        """The wider ends of both intervals."""
        return None if self.estimate is None else widest(self.estimate)

    @property
    def sentence(self) -> str:
        return f"{self.word.capitalize()}: {self.reason}"


def widest(estimate: Estimate) -> Ends | None:
    """From the lower of the lower ends to the upper of the upper ends of an estimate's intervals."""
    known = [ends for ends in (estimate.over_seeds, estimate.joint) if ends is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def match(design: Design, claim: Claim) -> Matching:
    """Pairs up the arms of a claim's two sides.

    A factor that only one side has (a conditional one) is averaged over on that side.

    Raises:
        LabError: No arm of one side has a partner on the other.
    """
    better = [arm for arm in design.arms if claim.higher.items() <= arm.levels.items()]
    worse = [arm for arm in design.arms if claim.lower.items() <= arm.levels.items() and arm not in better]
    claimed = {*claim.higher, *claim.lower}
    over = tuple(
        factor
        for factor in design.factors
        if factor not in claimed
        and any(factor in arm.levels for arm in better)
        and any(factor in arm.levels for arm in worse)
    )

    def of(arms: Sequence[DesignedArm], key: tuple[str | None, ...]) -> tuple[DesignedArm, ...]:
        return tuple(arm for arm in arms if tuple(arm.levels.get(factor) for factor in over) == key)

    keys = dict.fromkeys(tuple(arm.levels.get(factor) for factor in over) for arm in better)
    pairs = tuple((of(better, key), of(worse, key)) for key in keys if of(worse, key))
    if not pairs:
        raise LabError(
            f"claim: no arm with {_named(claim.higher)} has a partner with {_named(claim.lower)} that agrees "
            "in the other factors"
        )
    return Matching(pairs, over)


def contrast(measured: Measured, matching: Matching) -> tuple[Estimate | None, int]:
    """The better side less the worse side over all matched pairs, paired by seed.

    Each pair has the same weight, and each arm of a side of a pair. While an ablation is unfinished, the
    pairs and seeds are used that give most differences, but two seeds rather than one.

    Returns:
        The estimate, positive where it speaks for the claim, and the number of pairs it uses.
    """
    places = {name: a for a, name in enumerate(measured.arms)}
    complete: list[set[int]] = []  # of each pair, the places of seeds that have all of it
    for sides in matching.pairs:
        arms = [arm.name for side in sides for arm in side]
        known = all(name in places for name in arms)
        complete.append(set(measured.common_seeds(places[name] for name in arms)) if known else set())
    pairs, seeds = _largest(complete, len(measured.seeds))
    if not pairs:
        return None, 0
    weights = np.zeros(len(measured.arms))
    for number in pairs:
        for sign, side in zip((1, -1), matching.pairs[number], strict=True):
            for arm in side:
                weights[places[arm.name]] += measured.sign * sign / (len(pairs) * len(side))
    return measured.estimate(weights, seeds), len(pairs)


def judge(results: Results) -> Verdict | None:
    """The verdict on the ablation's claim; None where it makes none.

    Raises:
        LabError: No arm has the claim's metric, or no two arms can be matched.
    """
    design = results.design
    claim = design.claim
    if claim is None:
        return None
    if claim.metric not in results.metrics:
        raise LabError(f"claim.metric: no arm has '{claim.metric}'{nearest(claim.metric, results.metrics)}")
    measure = measure_of(claim.metric)
    measured = Measured(results, measure)
    matching = match(design, claim)
    estimate, pairs = contrast(measured, matching)
    if estimate is None:
        reason = "no seed has a pair of matching arms evaluated yet."
        return Verdict(claim, measure, UNDECIDED, reason, None, None, "")
    word = _word(estimate, claim.margin)
    reason = _reason(claim, measure, estimate, matching, pairs)
    seeds, plan = _plan(estimate, claim.margin, word)
    return Verdict(claim, measure, word, reason, estimate, seeds, plan)


def _largest(complete: Sequence[set[int]], seeds: int) -> tuple[list[int], list[int]]:
    """Pairs and seeds, all of whose combinations are there: as many as possible, two seeds at least."""
    best: tuple[tuple[bool, int], list[int], list[int]] = ((False, 0), [], [])
    for start in range(seeds):
        # seeds that have every pair which this one has, and which the seeds before it have as well
        held = [number for number, of in enumerate(complete) if start in of]
        for further in range(start, seeds):
            pairs = [number for number in held if further in complete[number]]
            together = [s for s in range(seeds) if pairs and all(s in complete[number] for number in pairs)]
            rank = (len(together) > 1, len(pairs) * len(together))
            if rank > best[0]:
                best = (rank, pairs, together)
    return best[1], best[2]


def _word(estimate: Estimate, margin: float) -> str:
    ends = widest(estimate)
    if ends is None or len(estimate.by_seed) < 2 or math.isnan(estimate.p):
        return UNDECIDED
    return SUPPORTED if ends[0] > margin else CONTRADICTED if ends[1] < margin else UNDECIDED


def _reason(claim: Claim, measure: Measure, estimate: Estimate, matching: Matching, pairs: int) -> str:
    size = measure.show(abs(estimate.value)) + unit_of(measure)
    better = "higher" if measure.rising else "lower"
    worse = "lower" if measure.rising else "higher"
    direction = better if estimate.value >= 0 else worse
    said = (
        f"with {_named(claim.higher)}, {measure.name} is {size} {direction} than with {_named(claim.lower)} "
        f"({intervals(measure, estimate)})"
    )
    total = len(matching.pairs)
    if matching.over:
        counted = f"{pairs} of {total}" if pairs < total else f"{total}"
        said += f", averaged over {counted} settings of {_list(matching.over)}"
    said += "."
    ends = widest(estimate)
    if claim.margin:
        said += f" The smallest difference that matters is {measure.show(claim.margin)}{unit_of(measure)}."
        if ends and len(estimate.by_seed) > 1 and ends[0] >= 0 and ends[1] < claim.margin:
            said += " The difference is of the claimed sign, but smaller than that."
    if len(estimate.by_seed) < 2:
        said += " One seed does not tell a difference between arms from chance in training."
    return said


def intervals(measure: Measure, estimate: Estimate) -> str:
    """Both intervals in words, as far as there are any."""
    parts = []
    count = len(estimate.by_seed)
    if estimate.over_seeds:
        parts.append(f"{between(measure, estimate.over_seeds)} by Student's t over {count} seeds")
    if estimate.joint:
        over = f"{count} seeds and " if count > 1 else ""
        parts.append(
            f"{between(measure, estimate.joint)} by bootstrap over {over}{estimate.samples:,} samples"
        )
    if not parts:
        return "no interval: one seed, and no per-sample scores"
    return f"95% interval{'s' if len(parts) > 1 else ''} {'; '.join(parts)}"


def between(measure: Measure, ends: Ends) -> str:
    """`+0.8 to +4.1`."""
    return f"{measure.change(ends[0])} to {measure.change(ends[1])}"


def unit_of(measure: Measure) -> str:
    """What stands behind a difference."""
    return " points" if measure.rate else ""


def _plan(estimate: Estimate, margin: float, word: str) -> tuple[Seeds | None, str]:
    if len(estimate.by_seed) < 2:
        return None, "A second seed is needed to say how many would decide it."
    values = list(estimate.by_seed.values())
    distance = abs(estimate.value - margin)
    seeds = seeds_needed(values, distance)
    if word != UNDECIDED:
        return seeds, ""
    if estimate.over_seeds and not estimate.over_seeds[0] <= margin <= estimate.over_seeds[1]:
        return seeds, (
            f"More seeds will hardly decide it: what is open is chance in the {estimate.samples:,} test "
            "samples. Evaluate on more."
        )
    if distance == 0:
        return seeds, "The difference lies on the margin itself: no number of seeds would decide it."
    return seeds, (
        f"If the true difference is the one seen, {seed_count(seeds)} in all would decide it with 80% power "
        f"(two-sided 5%, paired; {spread(seeds)}, as {len(values)} seeds show their own spread only roughly)."
    )


def seed_count(seeds: Seeds) -> str:
    """`12 seeds`, or that it is beyond counting."""
    return f"{counted(seeds.likely)} seeds"


def spread(seeds: Seeds) -> str:
    """`5 to 60`: the planner's range."""
    return f"{counted(seeds.fewest)} to {counted(seeds.most)}"


def counted(number: int | None) -> str:
    return f"more than {MOST_SEEDS:,}" if number is None else f"{number:,}"


def _named(levels: Mapping[str, str]) -> str:
    return _list(
        [level if level.startswith(factor) else f"{factor} {level}" for factor, level in levels.items()]
    )


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
