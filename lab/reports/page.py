"""The comparison as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

from lab.reports.arms import Arm, Comparison
from lab.reports.measures import GENERATION, UNDERSTANDING, Measure
from lab.reports.plots import Plot, Samples
from lab.reports.tables import columns, half_width, notes

_STYLE = """
:root { color-scheme: light; --ink: #1d2328; --quiet: #66707a; --line: #e3e6e9; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f8; color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 19px; margin: 44px 0 10px; }
p, li { max-width: 78ch; }
.lead { color: var(--quiet); margin: 0 0 24px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; }
.card, figure, .wide { background: white; border: 1px solid var(--line); border-radius: 10px;
                       padding: 16px 18px; }
.card b { display: block; font-size: 25px; line-height: 1.25; }
.card span { color: var(--quiet); font-size: 14px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 7px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
.words td { white-space: normal; } .words td:nth-child(2) { min-width: 210px; }
thead th { font-weight: 600; vertical-align: bottom; }
thead tr:first-child th { border-bottom: 0; padding-bottom: 0; color: var(--quiet); font-weight: 500;
                          text-align: left; }
tbody tr:last-child td { border-bottom: 0; }
td small { color: var(--quiet); margin-left: 4px; font-weight: 400; }
td.best { font-weight: 700; color: var(--mark); }
.edge { border-left: 1px solid var(--line); }
.tag { font-size: 12px; color: var(--mark); border: 1px solid currentColor; border-radius: 99px;
       padding: 0 7px; margin-left: 8px; }
.right { color: #00704f; } .wrong { color: #b3460a; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { color: var(--quiet); font-size: 14px; margin-top: 10px; }
img.pixels { width: 56px; height: 56px; image-rendering: pixelated; display: block; border-radius: 4px; }
code, pre { font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px;
      overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; }
"""


def page(comparison: Comparison, plots: Sequence[Plot], samples: Samples | None) -> str:
    """The whole page, pictures included.

    Args:
        comparison: What was compared.
        plots: The pictures that were drawn.
        samples: Samples of all arms, where they were kept.
    """
    name = escape(comparison.name)
    counts = len(comparison.arms), len(comparison.connectors), len(comparison.mixes)
    seen = "{} arms, {} connectors by {} mixes".format(*counts)
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
            f'<h1>{name}</h1>\n<p class="lead">{seen}: understanding and generation side by side.</p>',
            _cards(comparison),
            "<h2>What was compared</h2>",
            _compared(comparison),
            "<h2>Results</h2>",
            _results(comparison),
            f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes(comparison))}</ul>",
            *(_figure(plot) for plot in plots),
            _answers(samples),
            "<h2>What the columns mean</h2>",
            _meanings(comparison),
            "<h2>Cost</h2>",
            _cost(comparison),
            "<h2>Reproduce it</h2>",
            "<p>From a checkout of the commit that holds this page, in this pipeline's folder:</p>",
            "<pre>make run        # installs, runs what is missing, compares\n"
            "lab compare     # this page again, from the metrics\n"
            "lab ui          # the runs behind it, in MLflow</pre>",
            "</main>\n</body>\n</html>\n",
        ]
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


def _figure(plot: Plot) -> str:
    content = plot.path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        width = round(image.width * 0.8)  # one size of letters in all pictures; sharp on dense screens
    data = base64.b64encode(content).decode()
    return (
        f"<h2>{escape(plot.title)}</h2>"
        f'<figure><img alt="{escape(plot.title)}" width="{width}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def _answers(samples: Samples | None) -> str:
    if samples is None or not any(text.get("question") for text in samples.texts):
        return ""
    names = list(samples.predicted)
    heads = "".join(f"<th>{escape(name).replace('-', '<br>', 1)}</th>" for name in names)
    rows = []
    for index, text in enumerate(samples.texts[:10]):
        answers = "".join(_answer(samples.predicted[name][index], str(text["answer"])) for name in names)
        rows.append(
            f"<tr><td>{_pixels(samples.real[index])}</td><td>{escape(str(text['question']))}</td>"
            f"<td><b>{escape(str(text['answer']))}</b></td>{answers}</tr>"
        )
    return (
        "<h2>Answers</h2><p>The same held-out images, a question each.</p>"
        '<div class="wide words"><table><thead><tr></tr><tr><th>image</th><th>question</th><th>answer</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _answer(said: str, right: str) -> str:
    mark, word = ("✓", "right") if said == right else ("✗", "wrong")  # not by colour alone
    return f'<td class="{word}">{escape(said)}&nbsp;{mark}</td>'


def _pixels(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="pixels" alt="" src="data:image/png;base64,{data}">'


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
