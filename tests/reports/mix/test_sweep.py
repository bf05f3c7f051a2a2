"""A sweep whose trials varied the mix, reported from plain records of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab import cli
from lab.errors import LabError
from lab.reports.mix import Wish
from lab.reports.mix.sweep import report_sweep, trials_of_sweep
from lab.search.study import run as run_study
from lab.search.worker import Objective

from .conftest import rate

SMOKE = Path(__file__).parents[3] / "experiments" / "ablations" / "smoke" / "params.yaml"


@dataclass(frozen=True)
class Record:
    """What a sweep tells of a trial."""

    number: int
    settings: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


def records(total: int = 5120, batch: int = 16) -> list[Record]:
    """Nine mixes of one total, and one of half of it; then a trial that failed."""
    found = []
    for number, (share, samples) in enumerate([*((k / 8, total) for k in range(9)), (0.5, total // 2)]):
        u, g = share * samples, (1 - share) * samples
        settings = {
            "mixes.swept": {"vqa": share, "text_to_image": 1 - share},
            "mix": "swept",
            "stages.instruct.steps": samples // batch,
            "stages.instruct.batch_size": batch,
        }
        metrics = {
            "understanding/vqa": rate("linear", u, g, 0.0),
            "generation/scene": rate("linear", g, u, 0.0),
        }
        found.append(Record(number, settings, metrics, 60.0 + 0.01 * u + 0.02 * g))
    return [*found, Record(len(found), {}, {})]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAB_TRACKING", "off")
    shutil.copy(SMOKE, tmp_path / "params.yaml")
    return tmp_path


def test_amounts_follow_from_what_trials_set(folder: Path) -> None:
    trials = trials_of_sweep(records(), folder)
    assert len(trials) == 10
    assert [trial.amounts.understanding for trial in trials[:3]] == [0, 640, 1280]
    assert [trial.amounts.total for trial in trials[-2:]] == [5120, 2560]
    assert {trial.setting for trial in trials} == {""}


def test_amounts_of_many_mixes_stay_apart(folder: Path) -> None:
    """A sweep draws shares at will: near ones are not one."""
    settings = records()[0].settings
    many = [
        Record(n, {**settings, "mixes.swept": {"vqa": 200 + n, "text_to_image": 800}}, {"any": 1.0})
        for n in range(8)
    ]
    assert len({trial.amounts.understanding for trial in trials_of_sweep(many, folder)}) == 8


def test_words_that_trials_chose_are_settings(folder: Path) -> None:
    both = [
        Record(2 * one.number + place, {**one.settings, "connector": word}, one.metrics, one.seconds)
        for one in records()
        for place, word in enumerate(("linear", "q_former"))
    ]
    assert {trial.setting for trial in trials_of_sweep(both, folder)} == {"linear", "q_former"}


def test_the_best_mix_of_a_sweep_is_predicted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = report_sweep("mine", records(), folder, Wish(budget="5120"))
    assert "Best mix of 5,120 samples: 50% understanding" in " ".join(capsys.readouterr().out.split())
    text = page.read_text()
    assert "trial 4" in text
    assert "cannot be told here" in text


def test_a_sweep_of_one_mix_is_no_report(folder: Path) -> None:
    with pytest.raises(LabError, match="its 1 evaluated trials do not differ in their mix"):
        report_sweep("mine", records()[:1], folder, Wish())


def test_a_mix_that_is_more_than_weights_is_refused(folder: Path) -> None:
    moving = {"mixes.swept": {"vqa": {"0%": 1, "50%": 2}, "text_to_image": 1}, "mix": "swept"}
    with pytest.raises(LabError, match="needs mixes of plain weights"):
        trials_of_sweep([Record(0, moving, {"understanding/vqa": 0.5})], folder)


def test_a_study_of_optuna_is_reported_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "shares.yaml").write_text(
        "objectives: {understanding/vqa: maximize, generation/scene: maximize}\ntrials: 12\nsampler: qmc\n"
        "set: {stages.instruct.steps: 300, stages.instruct.batch_size: 16}\n"
        "space: {mix: {simplex: {read: {vqa: 1}, drawn: {text_to_image: 1}}}}\n"
    )

    def measure(settings: dict[str, Any], report: Any, rungs: Any = ()) -> dict[str, float]:
        mix = settings["mixes.swept"]
        u, g = (4800 * mix.get(task, 0.0) for task in ("vqa", "text_to_image"))
        return {
            "understanding/vqa": rate("linear", u, g, 0.0),
            "generation/scene": rate("linear", g, u, 0.0),
        }

    run_study("sweeps/shares.yaml", objective=Objective(measure))
    assert cli.main(["report", "shares", "--prefer", "understanding=1", "generation=3"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    share = int(re.search(r"Best mix of 4,800 samples: (\d+)% understanding", said)[1])  # type: ignore[index]
    assert 20 <= share <= 45  # half at equal weights
    assert (folder / "output" / "report" / "shares" / "fronts.png").exists()
