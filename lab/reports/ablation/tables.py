"""The comparison as tables to be read: in the terminal, as Markdown and as LaTeX."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.models.caching import FEATURES
from lab.reports.ablation.analysis import Analysis, Column, effect_notes, notes, probability
from lab.reports.ablation.cost import amount_of
from lab.reports.ablation.effects import Effect
from lab.reports.ablation.verdict import between

MARKS = {"samples": "*", "wilson": "°"}
_STYLES = {"understanding": "cyan", "generation": "magenta"}
_WORDS = {"supported": "green", "contradicted": "red", "undecided": "yellow"}


def half_width(column: Column, arm: str) -> str:
    """Half the interval behind ±, with a mark where it is not over seeds; empty where there is none."""
    mean = column.means[arm]
    if mean.over == "none":
        return ""
    half = (mean.high - mean.low) / 2 * column.measure.factor
    return f"±{half:.{column.measure.decimals(mean.value)}f}{MARKS.get(mean.over, '')}"


def title(analysis: Analysis) -> str:
    """`NAME: 6 arms, seeds 0, 1, 2`."""
    seeds = analysis.results.seeds
    arms = len(analysis.arms)
    return (
        f"{analysis.results.design.name}: {arms} arm{'s' if arms > 1 else ''}, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    )


def show(analysis: Analysis) -> None:
    """Prints verdict, table and effects."""
    console = Console()
    if not sys.stdout.isatty():
        console.width = 160  # a log file has no edge to wrap at
    if verdict := analysis.verdict:
        console.print(Text(f"Claim: {verdict.claim.text or '(in numbers alone)'}"), soft_wrap=True)
        word = Text(verdict.word.capitalize(), style=f"bold {_WORDS[verdict.word]}")
        console.print(word + Text(f": {verdict.reason}"), soft_wrap=True)
        if verdict.plan:
            console.print(Text(verdict.plan), soft_wrap=True)
    console.print(_results(analysis))
    for line in notes(analysis):
        console.print(Text(line), soft_wrap=True)
    for column in analysis.leading:
        if column.effects:
            console.print(_effects(column))
    for line in effect_notes(analysis):
        console.print(Text(line), soft_wrap=True)
    console.print(_spent(analysis))


def _results(analysis: Analysis) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title(analysis), title_justify="left")
    table.add_column("arm", no_wrap=True)
    for column in analysis.columns:
        measure = column.measure
        unit = "%" if measure.rate else "" if measure.rising else "↓"
        head = f"{measure.group[:3]}\n{measure.label}\n{unit}"
        table.add_column(Text(head, style=_STYLES.get(measure.group, "")), justify="right")
    for arm in analysis.arms:
        cells = []
        for column in analysis.columns:
            if arm not in column.means:
                cells.append(Text("-"))
                continue
            value = Text(column.measure.show(column.means[arm].value))
            value.stylize("bold" if column.winner == arm else "")
            cells.append(value + Text(f"\n{half_width(column, arm)}", style="dim"))
        front = "\non the front" if arm in analysis.front else "\n"
        table.add_row(Text(arm) + Text(front, style="dim"), *cells)
    return table


def _effects(column: Column) -> Table:
    measure = column.measure
    unit = "points" if measure.rate else "" if measure.rising else "less is better"
    heading = f"Effects on {measure.name}{f' ({unit})' if unit else ''}"
    table = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left")
    for name in ("factor", "change", "effect", "95% interval", "p", "p (Holm)", "judged over"):
        table.add_column(name, justify="left" if name in ("factor", "change", "judged over") else "right")
    for effect in column.effects:
        style = "bold" if effect.significant else ""
        table.add_row(*effect_cells(column, effect), style=style)
    return table


def effect_cells(column: Column, effect: Effect) -> list[str]:
    """Factor, change, effect, interval, p, adjusted p, and what it is judged over."""
    measure = column.measure
    return [
        effect.term,
        effect.change,
        measure.change(effect.value),
        between(measure, effect.interval) if effect.interval else "-",
        probability(effect.p),
        probability(effect.holm) + ("*" if effect.significant else ""),
        effect.over + (f", df {effect.freedom}" if effect.freedom else ""),
    ]


def _spent(analysis: Analysis) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Spent, per seed", title_justify="left")
    for name in cost_heads(analysis):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in cost_rows(analysis):
        table.add_row(*row)
    table.caption = " ".join(sharing(analysis))
    table.caption_justify = "left"
    return table


def cost_heads(analysis: Analysis) -> list[str]:
    """Heads of the table of costs."""
    budget = analysis.results.design.budget
    extra = (
        [f"budget: {budget.unit} in {', '.join(budget.stages)}"] if budget and analysis.cost.budget else []
    )
    return ["arm", *extra, *(f"all {unit}" for unit in analysis.cost.units)]


def cost_rows(analysis: Analysis) -> list[list[str]]:
    """What each arm spent in a seed, shared nodes in full."""
    cost = analysis.cost
    rows = []
    for arm in analysis.arms:
        extra = []
        if cost.budget:
            extra = [amount_of(cost.budget[arm]) if arm in cost.budget else "-"]
        spent = cost.arms.get(arm, {})
        rows.append([arm, *extra, *(amount_of(spent[u]) if u in spent else "-" for u in cost.units)])
    return rows


def sharing(analysis: Analysis) -> list[str]:
    """What sharing saved, in sentences."""
    cost = analysis.cost
    if not cost.units:
        return ["No node recorded what it spent."]
    unit = cost.units[0]
    lines = [
        f"All arms and seeds together: {amount_of(cost.distinct[unit])} {unit}; each alone they would have "
        f"taken {amount_of(cost.alone[unit])}. Sharing saved {cost.saved(unit):.0%}."
    ]
    if cost.shared:
        names = [
            f"{one.node} ({amount_of(one.spent[unit])} {unit}, used {one.uses} times)"
            for one in cost.shared[:3]
            if unit in one.spent
        ]
        lines += [f"Most of it: {', '.join(names)}."] if names else []
    cached = [one for one in cost.shared if one.node.partition("@")[0] in FEATURES]
    if cached:
        used = ", ".join(f"{one.node} (used {one.uses} times)" for one in cached)
        lines.append(f"Arms share the cached features of frozen encoders, too: {used}.")
    return lines


def markdown(analysis: Analysis) -> str:
    """Claim, table, effects and costs, as Markdown."""
    lines = [f"# {title(analysis)}", ""]
    if verdict := analysis.verdict:
        lines += [f"> {verdict.claim.text}", ""] if verdict.claim.text else []
        lines += [f"**{verdict.word.capitalize()}**: {verdict.reason} {verdict.plan}".strip(), ""]
    heads = [
        f"{c.measure.group}: {c.measure.label}{' (%)' if c.measure.rate else ''}"
        f"{'' if c.measure.rising else ' ↓'}"
        for c in analysis.columns
    ]
    rows = []
    for arm in analysis.arms:
        cells = []
        for column in analysis.columns:
            if arm not in column.means:
                cells.append("-")
                continue
            number = column.measure.show(column.means[arm].value)
            number = f"**{number}**" if column.winner == arm else number
            cells.append(f"{number} {half_width(column, arm)}".strip())
        rows.append([arm, *cells])
    lines += [*_grid(["arm", *heads], rows), "", *(f"- {note}" for note in notes(analysis)), ""]
    for column in analysis.leading:
        if column.effects:
            names = ["factor", "change", "effect", "95% interval", "p", "p (Holm)", "judged over"]
            body = [effect_cells(column, effect) for effect in column.effects]
            lines += [f"## Effects on {column.measure.name}", "", *_grid(names, body, left=2), ""]
    lines += [*(f"- {note}" for note in effect_notes(analysis)), ""]
    lines += ["## Spent, per seed", "", *_grid(cost_heads(analysis), cost_rows(analysis)), ""]
    return "\n".join([*lines, *(f"- {line}" for line in sharing(analysis)), ""])


def _grid(heads: list[str], rows: Iterable[list[str]], left: int = 1) -> list[str]:
    rule = "|" + "---|" * left + "---:|" * (len(heads) - left)
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def latex(analysis: Analysis) -> str:
    """The main table for a paper; it needs the package booktabs."""
    groups: list[tuple[str, int]] = []
    for column in analysis.columns:
        if groups and groups[-1][0] == column.measure.group:
            groups[-1] = (column.measure.group, groups[-1][1] + 1)
        else:
            groups.append((column.measure.group, 1))
    over = " & ".join(f"\\multicolumn{{{count}}}{{c}}{{{tex(group)}}}" for group, count in groups)
    rules, start = [], 2
    for _, count in groups:
        rules.append(f"\\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    heads = [
        tex(c.measure.label)
        + (r" (\%)" if c.measure.rate else "")
        + ("" if c.measure.rising else r" $\downarrow$")
        for c in analysis.columns
    ]
    body = []
    for arm in analysis.arms:
        cells = []
        for column in analysis.columns:
            if arm not in column.means:
                cells.append("--")
                continue
            number = column.measure.show(column.means[arm].value)
            number = f"\\textbf{{{number}}}" if column.winner == arm else number
            mark = half_width(column, arm)
            half = mark.strip("±*°")
            raised = {"*": "^{*}", "°": r"^{\circ}"}.get(mark[-1:], "")
            cells.append(f"{number} {{\\scriptsize $\\pm${half}${raised}$}}" if half else number)
        body.append(f"{tex(arm)} & {' & '.join(cells)} \\\\".replace("$$", ""))
    caption = " ".join(tex(line) for line in [f"{title(analysis)}.", *notes(analysis)[:2]])
    caption = caption.replace("±", r"$\pm$").replace("°", r"$^{\circ}$").replace("*", r"$^{*}$")
    label = analysis.results.design.name.replace("_", "-")
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{caption}}}",
            f"\\label{{tab:{label}}}",
            f"\\begin{{tabular}}{{l{'r' * len(analysis.columns)}}}",
            "\\toprule",
            f" & {over} \\\\",
            " ".join(rules),
            f"arm & {' & '.join(heads)} \\\\",
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


def tex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    for character in "&%#_":
        text = text.replace(character, f"\\{character}")
    return text
