"""A sweep's page: its plots to zoom and point at, in one file that loads nothing from elsewhere."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.reports.html import document
from lab.reports.look import COLOURS, INK
from lab.reports.measures import measure_of
from lab.search.results import Sweep, as_study

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_LAYOUT: dict[str, Any] = {
    "template": "simple_white",
    "colorway": COLOURS,
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
    "title": None,
    "margin": {"t": 30, "r": 30},
    "height": 460,
}


def write_page(sweep: Sweep, explained: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    """Writes the page.

    Args:
        sweep: what to show.
        explained: objective -> setting -> share of the differences that it explains.
        path: of the HTML file.
    """
    parts = [
        f"<h1>Sweep {escape(sweep.study)}</h1>",
        f'<p class="lead">{escape(_lead(sweep))}</p>',
        _best(sweep),
    ]
    script: bool | str = True  # the library itself, once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Optuna calls experimental
        for title, figure in _figures(sweep, bool(explained)):
            figure.update_layout(**_LAYOUT)
            figure.update_traces(marker_size=9, selector={"mode": "markers"})
            body = figure.to_html(full_html=False, include_plotlyjs=script, config={"displaylogo": False})
            parts.append(f"<h2>{escape(title)}</h2><figure>{body}</figure>")
            script = False
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(document(f"Sweep {sweep.study}", parts), encoding="utf-8")
    os.replace(draft, path)
    return path


def _figures(sweep: Sweep, explained: bool) -> Iterator[tuple[str, Figure]]:
    """Titles and plots, Optuna's own."""
    from optuna import visualization as show

    study, names = as_study(sweep), list(sweep.objectives)
    labels = [measure_of(name).axis for name in names]
    if len(names) in (2, 3):
        yield "Pareto front", show.plot_pareto_front(study, target_names=labels)
    for place, (name, direction) in enumerate(sweep.objectives.items()):

        def target(trial: Any, place: int = place) -> float:
            return float(trial.values[place])

        shown: dict[str, Any] = {"target_name": measure_of(name).axis}
        ending = ""
        if len(names) > 1:  # of one objective Optuna knows itself which way is better
            shown["target"], ending = target, f": {measure_of(name).label}"
        yield f"Optimisation history{ending}", show.plot_optimization_history(study, **shown)
        if explained:
            yield f"What mattered{ending}", show.plot_param_importances(study, **shown)
        if len(sweep.complete) > 1:
            yield f"Each setting alone{ending}", show.plot_slice(study, **shown)
            together = show.plot_parallel_coordinate(study, **shown)
            dark_is_best = {"line_reversescale": direction == "minimize"}
            together.update_traces(**dark_is_best, selector={"type": "parcoords"})
            yield f"All settings together{ending}", together


def _lead(sweep: Sweep) -> str:
    sought = " and ".join(f"{name} ({direction})" for name, direction in sweep.objectives.items())
    return f"{len(sweep.complete)} of {len(sweep.records)} trials complete; sought: {sought}."


def _best(sweep: Sweep) -> str:
    """A table of the best trial, or of those on the Pareto front."""
    measures = [measure_of(name) for name in sweep.objectives]
    heads = "".join(
        f"<th>{escape(head)}</th>" for head in ("trial", *sweep.keys, *(m.axis for m in measures))
    )
    rows = []
    for record in sweep.best:
        cells = [str(record.number)]
        for key in sweep.keys:
            value = record.chosen.get(key, "-")
            cells.append(f"{value:.4g}" if isinstance(value, float) else str(value))
        cells += [m.show(value) for m, value in zip(measures, record.values, strict=True)]
        rows.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    title = "Best trial" if len(measures) == 1 else "On the Pareto front"
    return (
        f'<h2>{title}</h2><div class="wide"><table><thead><tr></tr><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
