"""The comparison of an ablation as one HTML page that needs nothing but itself: the claim first."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lab.reports.ablation.analysis import Analysis, Column, effect_notes, notes, probability
from lab.reports.ablation.cost import amount_of
from lab.reports.ablation.estimates import Estimate
from lab.reports.ablation.tables import (
    cost_heads,
    cost_rows,
    effect_cells,
    half_width,
    sharing,
    title,
)
from lab.reports.ablation.verdict import between
from lab.reports.html import answers, document, figure
from lab.reports.look import Plot
from lab.reports.samples import Samples

_MARKS = {"supported": "right", "contradicted": "wrong", "undecided": "open"}


def page(analysis: Analysis, plots: Sequence[Plot], samples: Samples | None) -> str:
    """The whole page, pictures included.

    Args:
        analysis: What was compared.
        plots: The pictures that were drawn.
        samples: Samples of all arms, where they were kept.
    """
    drawn = {plot.path.stem: figure(plot) for plot in plots}
    pictures = [html for name, html in drawn.items() if name.startswith("samples")]
    design = analysis.results.design
    factors = " by ".join(f"{len(levels)} of {factor}" for factor, levels in analysis.varied.items())
    lead = title(analysis).partition(": ")[2]
    lead += f"; {factors.replace(' of', ' levels of', 1)}." if factors else "."
    return document(
        design.name,
        [
            f"<h1>{escape(design.name)}</h1>",
            f'<p class="lead">{escape(lead)}</p>',
            verdict_card(analysis),
            drawn.get("claim", ""),
            "<h2>Design</h2>",
            design_list(analysis),
            "<h2>Results</h2>",
            results_table(analysis),
            bullets(notes(analysis)),
            drawn.get("arms", ""),
            _differences(analysis),
            drawn.get("effects", "<h2>Effects of the factors</h2>"),
            bullets(effect_notes(analysis)),
            effects_part(analysis),
            drawn.get("interactions", ""),
            drawn.get("front", ""),
            "<h2>Cost</h2>",
            cost_part(analysis),
            *pictures,
            answers(samples),
            "<h2>What the columns mean</h2>",
            meanings(analysis),
            "<h2>Reproduce it</h2>",
            "<p>From a checkout of the commit that holds this page, in the root of the repository:</p>",
            f"<pre>lab graph run {escape(design.name)}   # runs what is missing, compares\n"
            f"lab compare {escape(design.name)}     # this page again, from the metrics\n"
            "lab ui          # the runs behind it, in MLflow</pre>",
        ],
    )


def verdict_card(analysis: Analysis) -> str:
    """The claim, and what came of it."""
    verdict = analysis.verdict
    if verdict is None:
        said = "The declaration claims nothing: see the effects."
        return f'<div class="card"><b>No claim</b><span>{said}</span></div>'
    text = verdict.claim.text or "The claim is stated in numbers alone."
    return (
        f'<div class="card verdict"><span>Claim: {escape(text)}</span>'
        f'<b class="{_MARKS[verdict.word]}">{verdict.word.capitalize()}</b>'
        f"<p>{escape(verdict.reason[0].upper() + verdict.reason[1:])} {escape(verdict.plan)}</p>"
        f"{''.join(f'<p><b>{escape(remark)}</b></p>' for remark in analysis.cost.remarks)}</div>"
    )


def design_list(analysis: Analysis) -> str:
    """What was varied, and what all arms share."""
    design = analysis.results.design
    rows = [(factor, ", ".join(levels)) for factor, levels in design.factors.items()]
    rows.append(("seeds", ", ".join(map(str, design.seeds))))
    if design.budget:
        each = "each of " if len(design.budget.stages) > 1 else ""
        amount, stages = amount_of(design.budget.amount), ", ".join(design.budget.stages)
        rows.append(("budget", f"{amount} {design.budget.unit} in {each}{stages}"))
    rows += [("aliases", alias) for alias in design.aliases]
    common: dict[str, set[str]] = {}
    for cell in analysis.results.cells.values():
        for key, word in cell.words.items():
            common.setdefault(key, set()).add(word)
    known = {*design.factors, "seed", "connector", "mix"} if len(analysis.arms) > 1 else {"seed"}
    fixed = [(key, *words) for key, words in common.items() if len(words) == 1 and key not in known]
    inner = "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd><b>{escape(words)}</b></dd>" for key, words in rows
    )
    inner += "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(word)}</dd>" for key, word in fixed
    )
    return f'<div class="wide"><dl>{inner}</dl></div>'


def results_table(analysis: Analysis) -> str:
    """The main table."""
    groups = list(dict.fromkeys(column.measure.group for column in analysis.columns))
    ordered = [column for group in groups for column in analysis.columns if column.measure.group == group]
    first = {next(c.measure.name for c in ordered if c.measure.group == group) for group in groups}
    over = "".join(
        f'<th class="edge" colspan="{sum(c.measure.group == g for c in ordered)}">{escape(g)}</th>'
        for g in groups
    )
    heads = "".join(
        f'<th class="{"edge" if c.measure.name in first else ""}" title="{escape(c.measure.meaning)}">'
        f"{escape(c.measure.label)}{' %' if c.measure.rate else ''}{'' if c.measure.rising else ' ↓'}</th>"
        for c in ordered
    )
    rows = []
    for arm in analysis.arms:
        tag = '<span class="tag">front</span>' if arm in analysis.front else ""
        cells = "".join(_cell(c, arm, "edge" if c.measure.name in first else "") for c in ordered)
        rows.append(f"<tr><td>{escape(arm)}{tag}</td>{cells}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th></th>{over}</tr><tr><th>arm</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(column: Column, arm: str, edge: str) -> str:
    if arm not in column.means:
        return f'<td class="{edge}">-</td>'
    mean, measure = column.means[arm], column.measure
    best = "best" if column.winner == arm else ""
    tip = f"95% interval {measure.show(mean.low)} to {measure.show(mean.high)}, over {mean.over}"
    small = half_width(column, arm)
    inner = f"{measure.show(mean.value)}<small>{small}</small>" if small else measure.show(mean.value)
    return f'<td class="{best} {edge}" title="{tip}">{inner}</td>'


def _differences(analysis: Analysis) -> str:
    """Every arm against the best one, metric by metric."""
    parts = []
    for column in analysis.leading:
        ranked = column.measured.ranked()
        if len(ranked) < 2:
            continue
        rows = []
        for arm in ranked[1:]:
            estimate = column.measured.difference(arm, ranked[0])
            if estimate is not None:
                cells = "".join(f"<td>{escape(cell)}</td>" for cell in _difference(column, estimate))
                rows.append(f"<tr><td>{escape(arm)}</td>{cells}</tr>")
        seeds = "95% over seeds" if len(analysis.results.seeds) > 1 else "95% over samples"
        heads = ["difference", seeds, "95% over seeds and samples", "p"]
        parts.append(
            f"<h3>{escape(column.measure.name)}, less {escape(ranked[0])}</h3>"
            + table(["arm", *heads], "".join(rows))
        )
    if not parts:
        return ""
    return (
        "<details><summary>Paired differences to the best arm</summary>"
        "<p>Per seed, on the same samples. p is the larger of the two tests', not corrected for the number "
        "of arms.</p>"
        f"{''.join(parts)}</details>"
    )


def _difference(column: Column, estimate: Estimate) -> list[str]:
    measure = column.measure
    joint = between(measure, estimate.joint) if estimate.joint and estimate.over_seeds else "-"
    interval = between(measure, estimate.interval) if estimate.interval else "-"
    return [measure.change(estimate.value), interval, joint, probability(estimate.p)]


def effects_part(analysis: Analysis) -> str:
    """A table of effects for every column."""
    return "".join(_effects(column) for column in analysis.columns if column.effects)


def _effects(column: Column) -> str:
    rows = []
    for effect in column.effects:
        cells = effect_cells(column, effect)
        style = ' class="best"' if effect.significant else ""
        inner = "".join(f"<td>{escape(cell)}</td>" for cell in cells[3:])
        rows.append(
            f'<tr><td>{escape(cells[0])}</td><td class="left">{escape(cells[1])}</td>'
            f"<td{style}>{escape(cells[2])}</td>{inner}</tr>"
        )
    heads = ["factor", "change", "effect", "95% interval", "p", "p (Holm)", "judged over"]
    unit = "points" if column.measure.rate else "" if column.measure.rising else "less is better"
    return (
        f"<details><summary>Effects on {escape(column.measure.name)}{f' ({unit})' if unit else ''}</summary>"
        f"{table(heads, ''.join(rows), left=2)}</details>"
    )


def cost_part(analysis: Analysis) -> str:
    """What was spent, arm by arm."""
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cost_rows(analysis)
    )
    said = "".join(f"<p>{escape(line)}</p>" for line in [*sharing(analysis), *analysis.cost.remarks])
    spent = table(cost_heads(analysis), rows)
    return f"{said}<p>An arm in one seed, on average, as if it ran alone:</p>{spent}"


def meanings(analysis: Analysis) -> str:
    """What the table's columns are."""
    rows = "".join(
        f"<dt>{escape(c.measure.label)}</dt><dd>{escape(c.measure.meaning)}</dd>" for c in analysis.columns
    )
    return f'<div class="wide"><dl>{rows}</dl></div>'


def table(heads: Sequence[str], rows: str, left: int = 1) -> str:
    """A table of rows that are HTML already."""
    cells = "".join(
        f'<th class="left">{escape(head)}</th>' if number < left else f"<th>{escape(head)}</th>"
        for number, head in enumerate(heads)
    )
    head = f"<thead><tr></tr><tr>{cells}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{rows}</tbody></table></div>'


def bullets(lines: Sequence[str]) -> str:
    """Sentences, one below the other."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
