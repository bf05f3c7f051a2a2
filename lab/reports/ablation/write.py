"""Writes the comparison of an ablation in all its forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.reports.ablation import numbers, tables
from lab.reports.ablation.analysis import Analysis, analyse
from lab.reports.ablation.results import read_results
from lab.reports.files import dump, write
from lab.tracking import Run, log_arm, log_view, start_run


def compare_ablation(folder: Path) -> None:
    """Compares what an ablation has so far: prints it, writes `output/compare/`, `metrics/comparison.json`.

    Args:
        folder: Of the ablation; it holds `compare.yaml`.

    Raises:
        LabError: Nothing is evaluated yet, or a file is broken.
    """
    analysis = analyse(read_results(folder))
    output = folder / "output" / "compare"
    name = analysis.results.design.name
    with start_run(experiment=name, arm=None, stage="compare", name="compare", command="lab compare") as run:
        found = _publish(analysis, output, run)
    write(folder / "metrics" / "comparison.json", dump(found))
    print(f"The page with all pictures: {output / 'comparison.html'}")


def write_ablation(folder: Path, output: Path, run: Run | None = None) -> dict[str, Any]:
    """The same as a stage: into a given folder and a run that is already open.

    Args:
        folder: Of the ablation.
        output: Where the files go.
        run: The MLflow run that gets them.

    Returns:
        The main numbers.
    """
    return _publish(analyse(read_results(folder)), output, run)


def _publish(analysis: Analysis, output: Path, run: Run | None) -> dict[str, Any]:
    from lab.reports.ablation.page import page
    from lab.reports.ablation.plots import draw
    from lab.reports.samples import read_samples

    output.mkdir(parents=True, exist_ok=True)
    samples = read_samples(evaluated(analysis))
    plots = draw(analysis, samples, output)
    write(output / "comparison.md", tables.markdown(analysis))
    write(output / "comparison.tex", tables.latex(analysis))
    write(output / "comparison.csv", numbers.comma_separated(analysis))
    write(output / "comparison.json", dump(numbers.everything(analysis)))
    write(output / "comparison.html", page(analysis, plots, samples))
    tables.show(analysis)
    _record(analysis)
    if run is not None:
        for path in sorted(output.glob("*.png")):
            run.artifact(path, "plots")
        for path in sorted(output.glob("comparison.*")):
            run.artifact(path)
    return numbers.summary(analysis)


def evaluated(analysis: Analysis) -> dict[str, Path]:
    """Arm -> output of its evaluation, all at the seed that most arms have."""
    results = analysis.results
    seed = max(results.seeds, key=lambda s: sum((arm.name, s) in results.cells for arm in results.arms))
    return {
        arm.name: results.folder / "output" / "evaluate" / arm.evaluate[seed]
        for arm in results.arms
        if (arm.name, seed) in results.cells
    }


def _record(analysis: Analysis) -> None:
    """Puts means and intervals on the arms' own runs, where MLflow compares arms."""
    results = analysis.results
    for arm in results.arms:
        words: dict[str, str] = {}
        for seed in arm.evaluate:
            if (arm.name, seed) in results.cells:
                words |= results.cells[arm.name, seed].words
        words.pop("seed", None)
        found: dict[str, float] = {}
        for column in analysis.columns:
            if arm.name in column.means:
                mean = column.means[arm.name]
                name = column.measure.name
                found |= {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}
        log_arm(results.design.name, arm.name, {**words, **arm.levels}, found)
    log_view(results.design.name, [column.measure.name for column in analysis.columns])
