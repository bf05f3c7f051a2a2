"""The stage `compare`: all arms of a pipeline in one table, a few pictures and one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lab.reports import tables
from lab.reports.arms import Comparison, read
from lab.reports.measures import GENERATION, MEASURES, UNDERSTANDING
from lab.tracking import Run, log_arm, log_view, start_run

__all__ = ["Comparison", "compare"]


def compare(folder: Path, run: Run | None = None) -> Comparison:
    """Compares a pipeline's arms: prints the table, writes `output/compare/` and `metrics/comparison.json`.

    Args:
        folder: The folder of the pipeline's params.yaml.
        run: The MLflow run that gets the pictures; without one, a run named `compare` is opened.

    Raises:
        LabError: No arm was evaluated yet, or a metric file is broken.
    """
    from lab.reports.page import page
    from lab.reports.plots import draw, read_samples

    comparison = read(folder)
    output = folder / "output" / "compare"
    output.mkdir(parents=True, exist_ok=True)
    plots = draw(comparison, output)
    _write(output / "comparison.md", tables.markdown(comparison))
    _write(output / "comparison.csv", tables.comma_separated(comparison))
    _write(output / "comparison.json", _dump(everything(comparison)))
    _write(output / "comparison.html", page(comparison, plots, read_samples(comparison)))
    _write(folder / "metrics" / "comparison.json", _dump(summary(comparison)))
    tables.show(comparison)
    print(f"The page with all pictures: {output / 'comparison.html'}")
    _record(comparison, output, run)
    return comparison


def summary(comparison: Comparison) -> dict[str, Any]:
    """The main numbers, as `dvc metrics show` lists them."""
    return {
        "best": comparison.best.name,
        "front": [arm.name for arm in comparison.front],
        "arms": {
            arm.name: {m.name: arm.metrics[m.name] for m in MEASURES if m.name in arm.metrics}
            for arm in comparison.arms
        },
    }


def everything(comparison: Comparison) -> dict[str, Any]:
    """All numbers with their intervals, for whoever wants to plot them anew."""
    return {
        "name": comparison.name,
        **summary(comparison),
        "arms": {
            arm.name: {
                "choices": dict(arm.choices),
                "metrics": dict(arm.metrics),
                "intervals": {name: list(ends) for name, ends in arm.intervals.items()},
                "chance": dict(arm.chance),
                "samples": arm.samples,
            }
            for arm in comparison.arms
        },
        "shared": {stage: dict(numbers) for stage, numbers in comparison.shared.items()},
    }


def _record(comparison: Comparison, output: Path, run: Run | None) -> None:
    """Puts final numbers on the arms' runs, where MLflow compares arms, and files on the comparison's."""
    for arm in comparison.arms:
        log_arm(comparison.name, arm.name, arm.choices, arm.metrics)
    first = [UNDERSTANDING.name, GENERATION.name]  # side by side, before the UI's table runs out of width
    log_view(comparison.name, list(dict.fromkeys([*first, *(m.name for m in tables.columns(comparison))])))
    if run is not None:
        _attach(run, output)
        return
    with start_run(experiment=comparison.name, arm=None, stage="compare", name="compare") as own:
        _attach(own, output)


def _attach(run: Run, output: Path) -> None:
    for path in sorted(output.glob("*.png")):
        run.artifact(path, "plots")
    for path in sorted(output.glob("comparison.*")):
        run.artifact(path)


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
