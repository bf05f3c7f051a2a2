"""The report of a sweep whose trials varied the mix."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

from lab.config import WORDS, load_params
from lab.errors import LabError
from lab.reports.files import dump, write
from lab.reports.measures import MEASURES
from lab.reports.mix import tables
from lab.reports.mix.page import Frame, page, table
from lab.reports.mix.plots import draw
from lab.reports.mix.study import Study, Wish, study_mixes
from lab.reports.mix.trials import Amounts, Trial, amounts_of, varies
from lab.reports.mix.write import publish
from lab.samples.mix import MixTree, parse
from lab.tracking.source import git_tags


class Record(Protocol):
    """A trial of a sweep: what it set, as `lab train` takes it, and what came of it.

    Attributes:
        number: In the study.
        settings: Dotted key -> value.
        metrics: Of the evaluation; empty where there was none.
        seconds: That it took, evaluation included.
    """

    @property
    def number(self) -> int: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def seconds(self) -> float | None: ...


def report_sweep(name: str, records: Sequence[Record], folder: Path, wish: Wish) -> Path:
    """Reports on a sweep as far as it went: prints its statement, writes `output/report/NAME/`.

    Args:
        name: Of the sweep.
        records: Its trials; those without metrics are left out.
        folder: Of the params.yaml that they start from.
        wish: Preference and budget of the best mix.

    Returns:
        The page.

    Raises:
        LabError: No trial has metrics, none varied the mix, or the wish cannot be read.
    """
    trials = trials_of_sweep(records, folder)
    if not varies(trials):
        raise LabError(f"sweep {name}: its {len(trials)} evaluated trials do not differ in their mix")
    known = {metric for trial in trials for metric in trial.metrics}
    measures = [measure for measure in MEASURES if measure.name in known]
    study = study_mixes(name, trials, measures, [], wish)
    output = folder / "output" / "report" / name
    output.mkdir(parents=True, exist_ok=True)
    path = output / "report.html"
    write(path, page(study, name, _frame(name, study), draw(study, output), [], None))
    write(output / "report.tex", tables.latex(study))
    write(output / "report.json", dump(tables.everything(study)))
    publish(study, load_params(folder / "params.yaml").name, output)
    return path


def trials_of_sweep(records: Sequence[Record], folder: Path) -> list[Trial]:
    """The evaluated trials of a sweep; words of parts that it varied are settings beside the mix.

    Args:
        records: Of the sweep.
        folder: Of the params.yaml that they start from.
    """
    known = [record for record in records if record.metrics]
    words = [role for role in WORDS if len({record.settings.get(role) for record in known}) > 1]
    trials = []
    for record in known:
        params = load_params(
            folder / "params.yaml", [f"{k}={_written(v)}" for k, v in record.settings.items()]
        )
        stage = params.stages.instruct
        if stage is None:
            continue
        drawn = amounts_of(_shares(next(iter(params.mixes.values()))), stage.steps * stage.batch_size)
        amounts = Amounts(*map(round, (drawn.understanding, drawn.generation, drawn.neither)))
        seconds = math.nan if record.seconds is None else record.seconds
        setting = " ".join(str(record.settings.get(role)) for role in words)
        trials.append(Trial(f"trial {record.number}", setting, params.seed, amounts, record.metrics, seconds))
    return trials


def _shares(tree: MixTree) -> dict[str, float]:
    """Task -> share of the samples.

    Raises:
        LabError: The mix's shares depend on more than its weights.
    """
    mix = parse(tree)
    if mix.planned or mix.count != "samples" or mix.temperature is not None:
        raise LabError(
            "a sweep's report needs mixes of plain weights: here more than these decides what trials drew"
        )
    weights = mix.weights(0.0, {})
    return {task: weight / sum(weights.values()) for task, weight in weights.items()}


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _frame(name: str, study: Study) -> Frame:
    names = [measure for measure in study.measures if all(measure.name in t.metrics for t in study.trials)]
    heads = ["trial", "with", "understanding", "generation", *(measure.axis for measure in names)]
    rows = [
        [
            trial.name,
            trial.setting or "-",
            f"{trial.amounts.understanding:,.0f}",
            f"{trial.amounts.generation:,.0f}",
            *(measure.show(trial.metrics[measure.name]) for measure in names),
        ]
        for trial in study.trials
    ]
    settings = ", ".join(["the mix", *filter(None, study.settings)])
    seconds = sum(trial.seconds for trial in study.trials if trial.seconds == trial.seconds)
    return Frame(
        lead=f"A sweep of {len(study.trials)} evaluated trials.",
        verdict="",
        claim="",
        design=f"<p>Trials differ in: {escape(settings)}. One seed: no interval is over seeds.</p>",
        results=table(heads, rows),
        after=f"<h2>Cost</h2><p>All trials together: {seconds:,.0f} seconds, evaluations included.</p>",
        commands=(f"lab sweep sweeps/{name}.yaml", f"lab report sweeps/{name}.yaml"),
        marks={"commit": git_tags().get("mlflow.source.git.commit", "unknown")},
        hashes={},
    )
