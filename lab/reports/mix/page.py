"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import yaml

from lab.reports.ablation.page import bullets
from lab.reports.html import answers, document, figure
from lab.reports.look import Plot
from lab.reports.mix import sentences
from lab.reports.mix.study import Study
from lab.reports.mix.tables import LAW_HEADS, SYNERGY_HEADS, law_rows, refusals, synergy_rows
from lab.reports.samples import Samples

_HOW_LAWS = (
    "The error of a metric (1 - rate, or the value where less is better) is fitted as floor + (start - "
    "floor) / (1 + (N / half)^power), where N counts the samples of the metric's own task, and each "
    "sample of the other task as so many of them as “exchange” says. “half after”: samples after which "
    "half of what can be gained is gained. “miss”: typical error at mixes that were left out of the fit, "
    "beside that of guessing their mean. “AICc”: by how much the exchange improves the fit, above 0 in "
    "its favour; a law has it only if it predicts left-out mixes better as well. Intervals are 95%, by a "
    "bootstrap over seeds and mixes. † the data do not bound this parameter."
)
_HOW_SYNERGY = (
    "Arms with equal samples of a metric's own task are compared, seed by seed, and averaged over the "
    "amounts of it. “interaction”: how much the change differs between the most and the fewest samples of "
    "its own. More samples of the other task also mean more training steps: this is what adding data does, "
    "not what trading it does."
)


@dataclass(frozen=True)
class Frame:
    """What surrounds the mixes on a page: parts of an ablation's or a sweep's own, HTML each.

    Attributes:
        lead: What it is, in a line.
        verdict: A card with the claim.
        claim: The claim's picture; "" without one.
        design: What was varied, and what was the same.
        results: Table of arms.
        after: What follows the mixes: effects, costs.
        commands: That make the page again, a line each.
        marks: Name -> value of what identifies the inputs: commit, data.
        hashes: Output -> its hash in DVC.
    """

    lead: str
    verdict: str
    claim: str
    design: str
    results: str
    after: str
    commands: Sequence[str]
    marks: Mapping[str, str]
    hashes: Mapping[str, str]


def page(
    study: Study | None,
    name: str,
    frame: Frame,
    plots: Mapping[str, Plot],
    grids: Sequence[Plot],
    samples: Samples | None,
) -> str:
    """The whole page, pictures included.

    Args:
        study: Of the mixes; None where they do not vary.
        name: Of the ablation or sweep.
        frame: The parts around it.
        plots: Pictures of the study by name.
        grids: Pictures of samples.
        samples: Samples of all arms, where they were kept.
    """
    drawn = {key: figure(plot) for key, plot in plots.items()}
    return document(
        name,
        [
            f"<h1>{escape(name)}</h1>",
            f'<p class="lead">{escape(frame.lead)}</p>',
            frame.verdict,
            _statement(study),
            frame.claim,
            "<h2>Design</h2>",
            frame.design,
            "<h2>Results</h2>",
            frame.results,
            *(_mixes(study, drawn) if study else ()),
            *(figure(plot) for plot in grids),
            answers(samples),
            frame.after,
            "<h2>Reproduce it</h2>",
            _reproduce(frame),
        ],
    )


def _statement(study: Study | None) -> str:
    if study is None:
        lines = [
            "All arms have the same mix of understanding and generation: there is nothing to say of mixes."
        ]
    else:
        lines = sentences.central(study)
    items = "".join(f"<p>{_spoken(line)}</p>" for line in lines)
    return f'<div class="card verdict"><span>Understanding and generation data</span>{items}</div>'


def _spoken(line: str) -> str:
    """A sentence whose first part, up to the colon, is what it comes to."""
    head, colon, rest = line.partition(":")
    return f"<strong>{escape(head)}{colon}</strong>{escape(rest)}" if colon else escape(line)


def _mixes(study: Study, drawn: Mapping[str, str]) -> list[str]:
    parts = [drawn.get("synergy", "<h2>Does one task's data help the other?</h2>")]
    if rows := synergy_rows(study):
        parts += [f"<p>{escape(_HOW_SYNERGY)}</p>", table(SYNERGY_HEADS, rows)]
    else:
        parts.append(
            "<p>No two arms of one kind agree in the samples of a task and differ in those of the other.</p>"
        )
    parts += [drawn.get("surfaces", ""), drawn.get("laws", "<h2>Laws</h2>")]
    if rows := law_rows(study):
        parts += [f"<p>{escape(_HOW_LAWS)}</p>", table(LAW_HEADS, rows)]
        parts.append(f"<details><summary>The same as formulas</summary>{_formulas(study)}</details>")
    if without := refusals(study):
        parts.append(f"<p>No law is given where the data do not carry one:</p>{bullets(without)}")
    if study.optima:
        parts.append(drawn.get("best", "<h2>The best mix</h2>"))
        said = [sentences.preference(study)]
        for one in study.optima:
            said.append(sentences.best_sentence(study, one))
            said += [sentences.measured_best(one)] if one.known else []
        parts.append(bullets(said))
    return [*parts, drawn.get("fronts", "")]


def _formulas(study: Study) -> str:
    known = [found for found in study.fits.values() if found.known]
    rows = "".join(
        f"<dt>{escape(found.name)}</dt><dd>{escape(sentences.formula(found))}</dd>" for found in known
    )
    return f"<dl>{rows}</dl>"


def _reproduce(frame: Frame) -> str:
    marks = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in frame.marks.items())
    hashes = ""
    if rows := list(frame.hashes.items()):
        listed = table(("output", "hash"), rows)
        hashes = f"<details><summary>{len(rows)} outputs by their hash in DVC</summary>{listed}</details>"
    commands = escape("\n".join(frame.commands))
    return f'<pre>{commands}</pre><div class="wide"><dl>{marks}</dl></div>{hashes}'


def hashes_of(folder: Path) -> dict[str, str]:
    """Output -> MD5 of every output that DVC's lock files below an ablation's folder name."""
    found = {}
    for lock in sorted(folder.glob("nodes/*/dvc.lock")):
        content = yaml.safe_load(lock.read_text(encoding="utf-8")) or {}
        for stage in (content.get("stages") or {}).values():
            for out in stage.get("outs", ()):
                if out["path"].lstrip("./").startswith("output/"):
                    found[out["path"].lstrip("./")] = out["md5"]
    return found


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain cells."""
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr></tr><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
