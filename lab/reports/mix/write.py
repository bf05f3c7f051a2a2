"""Writes the report of an ablation in all its forms."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from lab.reports.ablation import numbers
from lab.reports.ablation import tables as arms
from lab.reports.ablation.analysis import Analysis, analyse, effect_notes, notes
from lab.reports.ablation.estimates import Measured
from lab.reports.ablation.page import (
    bullets,
    cost_part,
    design_list,
    effects_part,
    meanings,
    results_table,
    verdict_card,
)
from lab.reports.ablation.plots import draw as draw_arms
from lab.reports.ablation.results import Results, read_results
from lab.reports.ablation.write import evaluated
from lab.reports.files import dump, write
from lab.reports.html import figure
from lab.reports.look import Plot
from lab.reports.mix import sentences, tables
from lab.reports.mix.page import Frame, hashes_of, page
from lab.reports.mix.plots import draw
from lab.reports.mix.study import Study, Wish, study_mixes
from lab.reports.mix.trials import earlier_mix, trials_of, varies
from lab.reports.samples import read_samples
from lab.tracking import start_run
from lab.tracking.source import git_tags


def report_ablation(folder: Path, wish: Wish) -> Path:
    """Reports on an ablation as far as it is evaluated: prints its statement, writes `output/report/`.

    Args:
        folder: Of the ablation; it holds `compare.yaml`.
        wish: Preference and budget of the best mix.

    Returns:
        The page.

    Raises:
        LabError: Nothing is evaluated yet, a file is broken, or the wish cannot be read.
    """
    results = read_results(folder)
    analysis = analyse(results)
    study = study_ablation(analysis, wish)
    output = folder / "output" / "report"
    output.mkdir(parents=True, exist_ok=True)
    samples = read_samples(evaluated(analysis))
    compared = draw_arms(analysis, samples, output)
    plots = draw(study, output) if study else {}
    grids = [plot for plot in compared if plot.path.stem.startswith("samples")]
    path = output / "report.html"
    write(path, page(study, results.design.name, _frame(analysis, compared), plots, grids, samples))
    write(output / "report.tex", arms.latex(analysis) + (tables.latex(study) if study else ""))
    write(output / "report.csv", numbers.comma_separated(analysis))
    content = {
        "comparison": numbers.everything(analysis),
        "mixes": tables.everything(study) if study else None,
    }
    write(output / "report.json", dump(content))
    if analysis.verdict is not None:
        print(f"Claim: {analysis.verdict.claim.text}\n{analysis.verdict.sentence}")
    publish(study, results.design.name, output)
    return path


def publish(study: Study | None, experiment: str, output: Path) -> None:
    """Prints the statement of a study and gives the files of its report to a run of MLflow.

    Args:
        study: None where mixes do not vary.
        experiment: Of MLflow.
        output: Where the files are.
    """
    for line in (
        sentences.central(study) if study else ["All arms have the same mix: nothing to say of mixes."]
    ):
        print(f"- {line}")
    with start_run(
        experiment=experiment, arm=None, stage="report", name="report", command="lab report"
    ) as run:
        for picture in sorted(output.glob("*.png")):
            run.artifact(picture, "plots")
        for file in sorted(output.glob("report.*")):
            run.artifact(file)


def study_ablation(analysis: Analysis, wish: Wish) -> Study | None:
    """What an ablation says of mixes; None where its arms have one mix alone, or recorded none."""
    results = analysis.results
    trials = trials_of(results)
    if not varies(trials):
        return None
    measures = [column.measure for column in analysis.columns]
    measured = [Measured(results, measure) for measure in measures]
    return study_mixes(results.design.name, trials, measures, measured, wish)


def _frame(analysis: Analysis, compared: Sequence[Plot]) -> Frame:
    results = analysis.results
    name = results.design.name
    drawn = {plot.path.stem: figure(plot) for plot in compared}
    before = sentences.earlier(earlier_mix(results))
    shown = [*notes(analysis), *_without_scores(results)]
    return Frame(
        lead=f"{arms.title(analysis).partition(': ')[2]}.",
        verdict=verdict_card(analysis),
        claim=drawn.get("claim", ""),
        design=design_list(analysis) + (f"<p>{escape(before)}</p>" if before else ""),
        results=results_table(analysis) + bullets(shown) + meanings(analysis),
        after="<details><summary>Effects of the factors, as <code>lab compare</code> tells them</summary>"
        + bullets(effect_notes(analysis))
        + effects_part(analysis)
        + f"</details><h2>Cost</h2>{cost_part(analysis)}",
        commands=(
            f"lab graph run {name}   # runs what is missing",
            f"lab report {name}      # this page, from the metrics",
            f"lab compare {name}     # arms and effects, in the terminal",
        ),
        marks=_marks(results.folder),
        hashes=hashes_of(results.folder),
    )


def _marks(folder: Path) -> dict[str, str]:
    """Code and data by what identifies them."""
    tags, data = git_tags(), hashes_of(folder).get("output/data/all")
    found = {"commit": tags["mlflow.source.git.commit"]} if tags else {}
    if tags.get("git_dirty") == "true":
        found["code"] = "with changes that are not committed"
    return found | ({"data, MD5": data} if data else {})


def _without_scores(results: Results) -> list[str]:
    if all(cell.scores for cell in results.cells.values()):
        return []
    return [
        "Scores of single samples are not at hand (dvc pull brings them): intervals are over seeds alone, "
        "and take the test samples as given. No width, as at 0 and 100%, is no certainty."
    ]
