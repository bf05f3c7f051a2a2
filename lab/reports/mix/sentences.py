"""What a report says in words: the central statement, and how each table is to be read."""

from __future__ import annotations

from lab.evaluation.laws import FORMS, PARAMETERS
from lab.reports.ablation.estimates import Estimate
from lab.reports.ablation.verdict import between, unit_of
from lab.reports.mix.fits import Fit
from lab.reports.mix.optimum import FLAT, SHARES, Optimum
from lab.reports.mix.study import Study
from lab.reports.mix.synergy import HELPS, HURTS, Synergy
from lab.reports.mix.trials import GENERATION, UNDERSTANDING, Amounts

_OTHER = {UNDERSTANDING: GENERATION, GENERATION: UNDERSTANDING}


def central(study: Study) -> list[str]:
    """The page's statement: what each task's data does to the other, and the best mix."""
    leading = [measure.name for measure in study.leading.values()]
    lines = [synergy_sentence(one) for one in study.synergies if one.measure.name in leading]
    if not study.synergies:
        lines.append(
            "Whether one task's data helps the other cannot be told here: no two arms agree in the samples "
            "of one task and differ in those of the other."
        )
    return [*lines, *(best_sentence(study, one) for one in study.optima)]


def synergy_sentence(one: Synergy) -> str:
    """`Generation data helps understanding: VQA +2.1 points (95% interval +0.4 to +3.8 over 3 seeds) ...`."""
    group = one.measure.group
    other, where = _OTHER[group], f" ({one.setting})" if one.setting else ""
    subject = {
        HELPS: f"{other.capitalize()} data helps {group}{where}",
        HURTS: f"{other.capitalize()} data hurts {group}{where}",
    }.get(one.word, f"Whether {other} data helps {group}{where} is undecided")
    change = f"{one.measure.label} changes by {one.measure.change(one.overall.value)}{unit_of(one.measure)}"
    return (
        f"{subject}: from {one.few:,.0f} to {one.many:,.0f} samples of it, at equal samples of {group}, "
        f"{change} ({interval_of(one, one.overall)})."
    )


def interval_of(one: Synergy, estimate: Estimate) -> str:
    """`95% interval +0.4 to +3.8 over 3 seeds`."""
    if estimate.interval is None:
        return "one seed, and no scores of samples: no interval"
    over = f"over {len(estimate.by_seed)} seeds" if estimate.over_seeds else "over samples"
    return f"95% interval {between(one.measure, estimate.interval)} {over}"


def best_sentence(study: Study, one: Optimum) -> str:
    """The best mix of a setting, in a sentence or two."""
    where = f" ({one.setting})" if one.setting else ""
    if not one.known:
        lacking = f"no prediction, for want of a law for {_list(one.missing)}"
        return f"Best mix{where}: {lacking}. {measured_best(one)}"
    place = one.place
    read, drawn = one.path.understanding[place], one.path.generation[place]
    amounts = f"{read:,.0f} samples of understanding and {drawn:,.0f} of generation"
    values = _list(
        [
            f"{study.fits[one.setting, name].measure.label} {value * 100:.0f}% ({low * 100:.0f} to "
            f"{high * 100:.0f})"
            for name, (value, low, high) in one.values.items()
        ]
    )
    said = (
        f"Best mix of {study.budget.said}{where}: {one.share:.0%} understanding (95% interval "
        f"{one.interval[0]:.0%} to {one.interval[1]:.0%}), that is {amounts}; predicted {values}. Any share "
        f"from {one.flat[0]:.0%} to {one.flat[1]:.0%} is within {FLAT * 100:.0f} point of it."
    )
    if one.path.extrapolated:
        said += " This is extrapolated: no mix of this size lies within what was measured."
    elif not one.path.covered.all():
        covered = SHARES[one.path.covered]
        said += f" Only shares from {covered.min():.0%} to {covered.max():.0%} lie within what was measured."
    return said


def measured_best(one: Optimum) -> str:
    """The best of the measured mixes within the budget."""
    found = one.measured
    if found is None:
        return "No measured mix lies within the budget."
    said = (
        f"Best of the measured mixes within the budget: {found.name}, preferred mean {found.value * 100:.1f}%"
    )
    if found.lead is None:
        return f"{said}; one seed, one mix or seeds that coincide: its lead cannot be judged."
    value, low, high = found.lead
    decided = "" if low > 0 else ", so which of the two is better is undecided"
    return (
        f"{said}, {value * 100:+.1f} points over {found.second} (95% interval {low * 100:+.1f} to "
        f"{high * 100:+.1f} over seeds{decided})."
    )


def preference(study: Study) -> str:
    """What “preferred mean” means, and the budget."""
    names = {measure.name: measure.label for measure in study.measures}
    if len(set(study.weights.values())) == 1:
        weights = _list([names[name] for name in study.weights]) + (
            " alike" if len(study.weights) > 1 else ""
        )
    else:
        weights = _list([f"{weight:g} times {names[name]}" for name, weight in study.weights.items()])
    return f"The preferred mean is that of {weights}; the budget {study.budget.said}."


def formula(found: Fit) -> str:
    """The law with its numbers."""
    start, half, power, floor, exchange = found.law.best.values
    own, other = found.group, _OTHER[found.group]
    amount = f"{own} samples"
    if found.law.chosen.startswith("transfer"):
        amount = f"{own} samples {'+' if exchange >= 0 else '-'} {abs(exchange):.2g} x {other} samples"
    fraction = f"/ (1 + (N / {half:,.0f})^{power:.2g})"
    falls = f"{start:.2g} {fraction}" if floor < 1e-6 else f"{floor:.2g} + {start - floor:.2g} {fraction}"
    return f"{'1 - rate' if found.measure.rate else 'value'} = {falls}, N = {amount}"


def parameter(found: Fit, name: str) -> str:
    """A parameter with its interval, `-` where the law has none."""
    if name == "exchange":
        if found.law.exchange is None:
            return "-"
        value, low, high = found.law.exchange
        return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
    if name not in FORMS[found.law.chosen]:
        return "-"
    value = float(found.law.best.values[PARAMETERS.index(name)])
    low, high = found.law.interval(name)
    if name == "half":
        said = f"{value:,.0f} ({low:,.0f} to {high:,.0f})"
    else:
        said = f"{value:.2f} ({low:.2f} to {high:.2f})"
    return said + (" †" if found.law.undetermined(name) else "")


def earlier(amounts: Amounts | None) -> str:
    """What arms have learned from before their own mix."""
    if amounts is None:
        return ""
    return (
        f"Before its own mix every arm has seen about {amounts.understanding:,.0f} samples of understanding "
        f"and {amounts.generation:,.0f} of generation in stages that arms share: 0 samples means none beyond "
        "these."
    )


def _list(words: list[str] | tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
