"""The mixes' tables: in LaTeX for a paper, and everything as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from lab.evaluation.laws import PARAMETERS
from lab.reports.ablation.tables import tex
from lab.reports.ablation.verdict import between
from lab.reports.mix.fits import Fit, named
from lab.reports.mix.sentences import parameter
from lab.reports.mix.study import Study

LAW_HEADS = (
    "metric",
    "start",
    "half after",
    "power",
    "floor",
    "exchange",
    "R²",
    "miss",
    "mean's miss",
    "AICc",
)
SYNERGY_HEADS = (
    "metric",
    "other's samples",
    "change",
    "95% interval",
    "p (Holm)",
    "interaction",
    "the other's data",
)


def law_rows(study: Study) -> list[list[str]]:
    """A row a law."""
    return [
        [
            found.name,
            *(parameter(found, name) for name in PARAMETERS),
            f"{found.law.r_squared:.3f}",
            _error(found, found.law.best.left_out),
            _error(found, found.law.candidates["constant"].left_out),
            _advantage(found),
        ]
        for found in study.fits.values()
        if found.known
    ]


def refusals(study: Study) -> list[str]:
    """Why some metrics have no law, a sentence a reason."""
    reasons: dict[str, list[str]] = {}
    for found in study.fits.values():
        if not found.known:
            reasons.setdefault(found.law.refusal, []).append(found.name)
    return [f"{'; '.join(names)}: {why}." for why, names in reasons.items()]


def synergy_rows(study: Study) -> list[list[str]]:
    """A row a metric and setting."""
    rows = []
    for one in study.synergies:
        measure = one.measure
        interval = between(measure, one.overall.interval) if one.overall.interval else "-"
        more = "-"
        if one.interaction is not None and one.interaction.interval is not None:
            more = f"{measure.change(one.interaction.value)} ({between(measure, one.interaction.interval)})"
        p = "-" if one.p != one.p else f"{one.p:.3f}" if one.p >= 0.001 else "<0.001"
        rows.append(
            [
                named(measure, one.setting) + ("" if measure.rising else " ↓"),
                f"{one.few:,.0f} to {one.many:,.0f}",
                measure.change(one.overall.value),
                interval,
                p,
                more,
                one.word,
            ]
        )
    return rows


def latex(study: Study) -> str:
    """Synergies and laws for a paper; the package booktabs is needed."""
    label = study.name.replace("_", "-")
    parts = ["% needs \\usepackage{booktabs}"]
    if rows := synergy_rows(study):
        caption = (
            "Change of each metric by the other task's samples, at fixed samples of its own; 95\\% intervals "
            "by Student's $t$ over seeds, $p$ after Holm's correction."
        )
        parts += _latex(f"tab:{label}-synergy", caption, SYNERGY_HEADS, rows, "llrrrrl")
    if rows := law_rows(study):
        caption = (
            "Fitted laws, error $= c + (a - c) / (1 + (N/h)^k)$ with $N$ the own samples plus the exchange "
            "times the other's: start $a$, half after $h$, power $k$, floor $c$. 95\\% intervals by "
            "bootstrap over seeds and cells. The miss is the error at mixes that were left out."
        )
        parts += _latex(f"tab:{label}-laws", caption, LAW_HEADS, rows, "lrrrrrrrrl")
    return "\n".join([*parts, ""])


def everything(study: Study) -> dict[str, Any]:
    """All numbers, for programs."""
    return {
        "trials": [asdict(trial) | {"metrics": _of(study, trial.metrics)} for trial in study.trials],
        "laws": [_law(found) for found in study.fits.values()],
        "synergies": [
            {
                "metric": one.measure.name,
                "setting": one.setting,
                "from": one.few,
                "to": one.many,
                "change": one.overall.value,
                "interval": one.overall.interval,
                "p_holm": None if one.p != one.p else one.p,
                "verdict": one.word,
                "by_own": {f"{own:.0f}": asdict(estimate)["value"] for own, estimate in one.by_own.items()},
                "interaction": None if one.interaction is None else one.interaction.value,
                "interaction_interval": None if one.interaction is None else one.interaction.interval,
            }
            for one in study.synergies
        ],
        "preference": dict(study.weights),
        "budget": asdict(study.budget),
        "best": [
            {
                "setting": one.setting,
                "share_of_understanding": one.share if one.known else None,
                "interval": one.interval if one.known else None,
                "within_a_point": one.flat if one.known else None,
                "predicted": dict(one.values),
                "without_law": list(one.missing),
                "extrapolated": one.path.extrapolated,
                "measured": None if one.measured is None else asdict(one.measured),
            }
            for one in study.optima
        ],
    }


def _of(study: Study, metrics: Any) -> dict[str, float]:
    return {measure.name: metrics[measure.name] for measure in study.measures if measure.name in metrics}


def _law(found: Fit) -> dict[str, Any]:
    law = found.law
    content: dict[str, Any] = {"metric": found.measure.name, "setting": found.setting, "refusal": law.refusal}
    if found.known:
        content |= {
            "form": law.chosen,
            "parameters": dict(zip(PARAMETERS, map(float, law.best.values), strict=True)),
            "intervals": {name: law.interval(name) for name in PARAMETERS},
            "exchange": law.exchange,
            "r_squared": law.r_squared,
        }
    content["forms"] = {
        name: {"aicc": one.aicc, "left_out": one.left_out} for name, one in law.candidates.items()
    }
    return content


def _error(found: Fit, error: float) -> str:
    """A root mean square error in the shown unit."""
    return f"{error * found.measure.factor:.{1 if found.measure.rate else 3}f}"


def _advantage(found: Fit) -> str:
    """What the exchange gains over the same law without it: the fall of AICc."""
    known = found.law.candidates
    without, having = (
        [one.aicc for form, one in known.items() if form.startswith(kind)] for kind in ("own", "transfer")
    )
    return f"{min(without) - min(having):+.1f}" if having else "-"


def _latex(
    label: str, caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], columns: str
) -> list[str]:
    return [
        "\\begin{table}",
        "\\centering\\small",
        f"\\caption{{{caption}}}",
        f"\\label{{{label}}}",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        f"{' & '.join(map(_plain, heads))} \\\\",
        "\\midrule",
        *(f"{' & '.join(map(_plain, row))} \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]


def _plain(text: str) -> str:
    signs = {"²": "$^2$", "†": "$^{\\dagger}$", "↓": "$\\downarrow$", "<": "$<$", "é": "\\'e"}
    text = tex(text)
    for sign, written in signs.items():
        text = text.replace(sign, written)
    return text
