"""How many seeds an ablation needs, from the seeds it has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from lab.evaluation.statistics import deviation_interval, power, seeds_for, seeds_needed
from lab.reports.ablation.design import Design, read_design
from lab.reports.ablation.estimates import Measured
from lab.reports.ablation.results import Results, read_results
from lab.reports.ablation.verdict import contrast, counted, match, spread, unit_of
from lab.reports.measures import GENERATION, UNDERSTANDING, Measure, measure_of

_SEEDS = (2, 3, 5, 8, 12, 20)
_RATIOS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
_POINTS = (0.005, 0.01, 0.02, 0.05, 0.1)  # differences of a rate that ablations report


def power_table(folder: Path) -> Table:
    """Power by number of seeds, and the seeds that give 80%, for differences of several sizes.

    With two seeds or more of the claim's arms evaluated (without a claim: of any two arms), the differences
    are in the metric's unit and the spread is theirs. Before that, they are in standard deviations.

    Args:
        folder: Of the ablation; it holds `compare.yaml`.

    Raises:
        LabError: `compare.yaml` or a metric file is missing or broken.
    """
    design = read_design(folder)
    pilot = _pilot(folder, design)
    if pilot is None:
        return _generic()
    measure, what, differences, seeds = pilot
    deviation = float(np.std(list(differences), ddof=1))
    if deviation == 0:
        return _generic()  # rates can coincide by chance: no spread to plan with
    low, high = deviation_interval(differences)
    table = Table(
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title=f"{measure.name}: {what}, paired; SD between seeds {measure.show(deviation)}{unit_of(measure)} "
        f"({measure.show(low)} to {measure.show(high)}, from seeds {', '.join(map(str, seeds))})",
        caption="Two-sided test at 5%. The range is that of the pilot's SD, which few seeds show only "
        "roughly. Chance in the test samples is not in it: more seeds do not reduce it.",
        caption_justify="left",
    )
    table.add_column("true difference", justify="right")
    for count in _SEEDS:
        table.add_column(f"power\n{count} seeds", justify="right")
    table.add_column("seeds\nfor 80%", justify="right")
    table.add_column("range", justify="right")
    for size, note in _sizes(design, measure, float(np.mean(list(differences))), deviation):
        needed = seeds_needed(list(differences), size)
        table.add_row(
            f"{measure.show(size)}{unit_of(measure)}{note}",
            *(f"{power(count, size / deviation):.0%}" for count in _SEEDS),
            counted(needed.likely),
            spread(needed),
        )
    return table


def _generic() -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title="No pilot yet: differences in standard deviations between seeds",
        caption="80% power, two-sided test at 5%. Paired: arms share seeds, as here; the deviation is that "
        "of the paired differences. Two seeds of every arm make a pilot, from which this table is then made.",
        caption_justify="left",
    )
    table.add_column("difference / SD")
    for ratio in _RATIOS:
        table.add_column(f"{ratio:g}", justify="right")
    table.add_row("seeds, paired", *(counted(seeds_for(ratio)) for ratio in _RATIOS))
    table.add_row("seeds an arm, unpaired", *(counted(seeds_for(ratio, paired=False)) for ratio in _RATIOS))
    return table


def _pilot(folder: Path, design: Design) -> tuple[Measure, str, list[float], list[int]] | None:
    """The metric, what is compared, its paired differences and their seeds; None before two seeds."""
    if not any((folder / "metrics" / "evaluate" / f"{label}.json").exists() for label in _labels(design)):
        return None
    results = read_results(folder)
    if design.claim and design.claim.metric in results.metrics:
        measure = measure_of(design.claim.metric)
        estimate, _ = contrast(Measured(results, measure), match(design, design.claim))
        if estimate is None or len(estimate.by_seed) < 2:
            return None
        sides = (" ".join(side.values()) for side in (design.claim.higher, design.claim.lower))
        return measure, " less ".join(sides), list(estimate.by_seed.values()), list(estimate.by_seed)
    return _typical(results)


def _typical(results: Results) -> tuple[Measure, str, list[float], list[int]] | None:
    """Without a claim: the two arms whose difference varies as that of most."""
    wanted = (*results.design.metrics, GENERATION.name, UNDERSTANDING.name)
    name = next((name for name in wanted if name in results.metrics), None)
    if name is None:
        return None
    measured = Measured(results, measure_of(name))
    pairs = []
    for a, first in enumerate(measured.arms):
        for b, second in enumerate(measured.arms[:a]):
            places = measured.common_seeds((a, b))
            if len(places) > 1:
                values = (measured.values[a] - measured.values[b])[places]
                seeds = [measured.seeds[s] for s in places]
                pairs.append((float(values.std(ddof=1)), f"{first} less {second}", values.tolist(), seeds))
    if not pairs:
        return None
    _, what, values, seeds = sorted(pairs)[len(pairs) // 2]
    return measured.measure, f"{what}, the pair of median spread", values, seeds


def _sizes(design: Design, measure: Measure, seen: float, deviation: float) -> list[tuple[float, str]]:
    """Differences worth a row: the usual ones, the margin, and the one that the pilot saw."""
    usual = _POINTS if measure.rate else [ratio * deviation for ratio in _RATIOS]
    margin = design.claim.margin if design.claim else 0.0
    rows = {round(size, 12): "" for size in usual}
    if margin:
        rows[margin] = " (margin)"
    if seen:
        rows[abs(seen)] = " (seen)"
    return sorted(rows.items())


def _labels(design: Design) -> set[str]:
    return {label for arm in design.arms for label in arm.evaluate.values()}
