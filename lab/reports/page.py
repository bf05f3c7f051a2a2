"""The comparison as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from lab.reports.arms import Arm, Comparison
from lab.reports.html import answers, document, figure
from lab.reports.look import Plot
from lab.reports.measures import GENERATION, UNDERSTANDING, Measure
from lab.reports.samples import Samples
from lab.reports.tables import columns, half_width, notes


def page(comparison: Comparison, plots: Sequence[Plot], samples: Samples | None) -> str:
    """The whole page, pictures included.

    Args:
        comparison: What was compared.
        plots: The pictures that were drawn.
        samples: Samples of all arms, where they were kept.
    """
    counts = len(comparison.arms), len(comparison.connectors), len(comparison.mixes)
    seen = "{} arms, {} connectors by {} mixes".format(*counts)
    return document(
        comparison.name,
        [
            f"<h1>{escape(comparison.name)}</h1>",
            f'<p class="lead">{seen}: understanding and generation side by side.</p>',
            _cards(comparison),
            "<h2>What was compared</h2>",
            _compared(comparison),
            "<h2>Results</h2>",
            _results(comparison),
            f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes(comparison))}</ul>",
            *map(figure, plots),
            answers(samples),
            "<h2>What the columns mean</h2>",
            _meanings(comparison),
            "<h2>Cost</h2>",
            _cost(comparison),
            "<h2>Reproduce it</h2>",
            "<p>From a checkout of the commit that holds this page, in this pipeline's folder:</p>",
            "<pre>make run        # installs, runs what is missing, compares\n"
            "lab compare     # this page again, from the metrics\n"
            "lab ui          # the runs behind it, in MLflow</pre>",
        ],
    )


def _cards(comparison: Comparison) -> str:
    best = comparison.best
    cards = [
        (best.name, "best on average of VQA and whole scenes"),
        *(_record(comparison, measure, words) for measure, words in _RECORDS),
        (str(len(comparison.front)), "arms on the Pareto front"),
    ]
    inner = "".join(
        f'<div class="card"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in cards
    )
    return f'<div class="cards">{inner}</div>'


_RECORDS = ((UNDERSTANDING, "of questions answered"), (GENERATION, "of scenes drawn right"))


def _record(comparison: Comparison, measure: Measure, words: str) -> tuple[str, str]:
    value = comparison.best_value(measure)
    holder = next((arm.name for arm in comparison.arms if arm.value(measure) == value), "")
    return (f"{measure.show(value)}%", f"{words} by {holder}") if value is not None else ("-", words)


def _compared(comparison: Comparison) -> str:
    common, varied = comparison.choices()
    rows = [(key, f"<b>{escape(', '.join(words))}</b>") for key, words in varied.items()]
    rows += [(key, escape(word)) for key, word in common.items()]
    inner = "".join(f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{words}</dd>" for key, words in rows)
    return f'<div class="wide"><dl>{inner}</dl></div>'


def _results(comparison: Comparison) -> str:
    shown = columns(comparison)
    groups = list(dict.fromkeys(measure.group for measure in shown))
    first = {next(m.name for m in shown if m.group == group) for group in groups}
    over = "".join(f'<th class="edge" colspan="{sum(m.group == g for m in shown)}">{g}</th>' for g in groups)
    heads = "".join(
        f'<th class="{_edge(m, first)}" title="{escape(m.meaning)}">{escape(m.label)}{" %" if m.rate else ""}'
        f"{'' if m.rising else ' ↓'}</th>"
        for m in shown
    )
    front = comparison.front
    rows = []
    for arm in comparison.arms:
        tag = '<span class="tag">front</span>' if arm in front else ""
        cells = "".join(_cell(comparison, arm, m, first) for m in shown)
        rows.append(f"<tr><td>{escape(arm.name)}{tag}</td>{cells}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th></th>{over}</tr><tr><th>arm</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(comparison: Comparison, arm: Arm, measure: Measure, first: set[str]) -> str:
    value = arm.value(measure)
    best = "best" if value is not None and value == comparison.best_value(measure) else ""
    note = half_width(arm, measure)
    title = ""
    if measure.name in arm.intervals:
        low, high = arm.intervals[measure.name]
        title = f' title="95% interval {measure.show(low)} to {measure.show(high)}"'
    small = f"<small>{note}</small>" if note else ""
    return f'<td class="{best} {_edge(measure, first)}"{title}>{measure.show(value)}{small}</td>'


def _edge(measure: Measure, first: set[str]) -> str:
    return "edge" if measure.name in first else ""


def _meanings(comparison: Comparison) -> str:
    rows = "".join(f"<dt>{escape(m.label)}</dt><dd>{escape(m.meaning)}</dd>" for m in columns(comparison))
    return f'<div class="wide"><dl>{rows}</dl></div>'


def _cost(comparison: Comparison) -> str:
    rows: list[tuple[str, float | None, float | None]]
    rows = [(stage, seconds, None) for stage, seconds in comparison.seconds.items()]
    rows += [
        (arm.name, arm.metrics.get("cost/train_seconds"), arm.metrics.get("cost/evaluate_seconds"))
        for arm in comparison.arms
    ]
    total = sum(value for _, *values in rows for value in values if value is not None)
    body = "".join(f"<tr><td>{escape(name)}</td>{_seconds(values)}</tr>" for name, *values in rows)
    return (
        f"<p>{total / 60:.1f} minutes of stages in all. Shared stages ran once for all arms.</p>"
        '<div class="wide"><table><thead><tr></tr><tr><th>stage or arm</th><th>training (s)</th>'
        f"<th>evaluation (s)</th></tr></thead><tbody>{body}</tbody></table></div>"
    )


def _seconds(values: Iterable[float | None]) -> str:
    return "".join(f"<td>{'' if value is None else f'{value:.1f}'}</td>" for value in values)
