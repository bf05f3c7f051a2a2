"""The stage `compare`: all arms of a pipeline in one table, a few pictures and one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.reports import tables
from lab.reports.arms import Comparison, read
from lab.reports.files import dump, write
from lab.reports.measures import GENERATION, MEASURES, UNDERSTANDING
from lab.tracking import Run, log_arm, log_view, start_run

__all__ = ["Comparison", "compare", "write_comparison"]


def compare(folder: Path) -> Comparison:
    """Compares a pipeline's arms: prints the table, writes `output/compare/` and `metrics/comparison.json`.

    Args:
        folder: The folder of the pipeline's params.yaml.

    Raises:
        LabError: No arm was evaluated yet, or a metric file is broken.
    """
    comparison = read(folder)
    output = folder / "output" / "compare"
    with start_run(
        experiment=comparison.name, arm=None, stage="compare", name="compare", command="lab compare"
    ) as run:
        numbers = _publish(comparison, output, run)
    write(folder / "metrics" / "comparison.json", dump(numbers))
    print(f"The page with all pictures: {output / 'comparison.html'}")
    return comparison


def write_comparison(folder: Path, output: Path, run: Run | None = None) -> dict[str, Any]:
    """The same as a stage: into a given folder and a run that is already open.

    Args:
        folder: The folder of the pipeline's params.yaml.
        output: Where the files go.
        run: The MLflow run that gets them.

    Returns:
        The main numbers.
    """
    return _publish(read(folder), output, run)


def _publish(comparison: Comparison, output: Path, run: Run | None) -> dict[str, Any]:
    from lab.reports.page import page
    from lab.reports.plots import draw
    from lab.reports.samples import read_samples

    output.mkdir(parents=True, exist_ok=True)
    evaluated = comparison.folder / "output" / "evaluate"
    samples = read_samples({arm.name: evaluated / arm.name for arm in comparison.arms})
    plots = draw(comparison, samples, output)
    write(output / "comparison.md", tables.markdown(comparison))
    write(output / "comparison.csv", tables.comma_separated(comparison))
    write(output / "comparison.json", dump(everything(comparison)))
    write(output / "comparison.html", page(comparison, plots, samples))
    tables.show(comparison)
    _record(comparison)
    if run is not None:
        for path in sorted(output.glob("*.png")):
            run.artifact(path, "plots")
        for path in sorted(output.glob("comparison.*")):
            run.artifact(path)
    return summary(comparison)


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


def _record(comparison: Comparison) -> None:
    """Puts the final numbers on the arms' own runs, where MLflow compares arms."""
    for arm in comparison.arms:
        log_arm(comparison.name, arm.name, arm.choices, arm.metrics)
    first = [UNDERSTANDING.name, GENERATION.name]  # side by side, before the UI's table runs out of width
    log_view(comparison.name, list(dict.fromkeys([*first, *(m.name for m in tables.columns(comparison))])))
