"""The report on data mixes: what it concludes from numbers whose truth is known, and how it says so."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lab import cli
from lab.errors import LabError
from lab.reports.ablation.analysis import analyse
from lab.reports.ablation.results import read_results
from lab.reports.measures import measure_of
from lab.reports.mix import Wish, report_ablation
from lab.reports.mix.optimum import read_budget, read_preference, within
from lab.reports.mix.study import Study
from lab.reports.mix.trials import Amounts, Trial, amounts_of, earlier_mix, levelled, trials_of
from lab.reports.mix.write import study_ablation

from .conftest import make_mixes, rate

Make = Callable[..., Path]
ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "experiments" / "ablations" / "connectors_by_mix"


def study(folder: Path, *prefer: str, budget: str = "") -> Study:
    found = study_ablation(analyse(read_results(folder)), Wish(prefer, budget))
    assert found is not None
    return found


def test_samples_count_for_what_they_teach() -> None:
    mix = {"vqa": 0.4, "caption": 0.1, "text_to_image": 0.2, "edit": 0.1, "interleaved": 0.1, "text": 0.1}
    found = amounts_of(mix, 1000)
    assert (found.understanding, found.generation, found.neither) == pytest.approx((550, 350, 100))


def test_amounts_are_measured_and_settings_are_what_is_beside_them(mixes: Make) -> None:
    results = read_results(mixes())
    trials = trials_of(results)
    assert {trial.setting for trial in trials} == {"linear", "perceiver"}
    assert {trial.amounts.understanding for trial in trials} == {0, 1280, 2560, 5120}
    assert earlier_mix(results) == Amounts(1200, 400)
    alone = trials_of(read_results(mixes(connectors=("linear",))))
    assert {trial.setting for trial in alone} == {""}


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ([5118, 5120, 5133, 1275, 1284], [5120, 5120, 5120, 1275, 1275]),  # shares are exact to 1/256
        ([0, 320, 51200], [0, 320, 51200]),  # a few samples are not none
        (list(range(40, 5160, 40)), None),  # each near the next, the first far from the last
    ],
)
def test_amounts_that_rounding_tells_apart_are_one(amounts: list[int], expected: list[int] | None) -> None:
    trials = [Trial(str(u), "", 0, Amounts(u, 5120), {}, 1.0) for u in amounts]
    found = [trial.amounts.understanding for trial in levelled(trials)]
    if expected:
        assert found == expected
    assert all(abs(one - amount) <= 0.01 * max(amounts) for one, amount in zip(found, amounts, strict=True))


def test_help_is_told_from_harm_and_from_nothing(mixes: Make) -> None:
    folder = mixes(
        understood=lambda connector, u, g: rate(connector, u, g, -0.1),
        drawn=lambda connector, u, g: rate(connector, g, u, 0.3 if connector == "linear" else 0.0),
    )
    words = {(one.setting, one.measure.name): one.word for one in study(folder).synergies}
    assert words == {
        ("linear", "understanding/vqa"): "hurts",
        ("linear", "generation/digit"): "helps",
        ("perceiver", "understanding/vqa"): "hurts",
        ("perceiver", "generation/digit"): "undecided",
    }


def test_an_effect_is_the_paired_mean_at_equal_samples_of_its_own(mixes: Make) -> None:
    folder = mixes(connectors=("linear",))
    found = next(one for one in study(folder).synergies if one.measure.name == "generation/digit")
    values = {
        (t.amounts.understanding, t.amounts.generation, t.seed): t.metrics["generation/digit"]
        for t in trials_of(read_results(folder))
    }
    owns = (1280, 2560, 5120)
    by_seed = {s: np.mean([values[5120, g, s] - values[0, g, s] for g in owns]) for s in (0, 1, 2)}
    assert (found.few, found.many) == (0, 5120)
    assert found.overall.by_seed == pytest.approx(by_seed)
    assert found.interaction is not None
    apart = [
        (values[5120, 5120, s] - values[0, 5120, s]) - (values[5120, 1280, s] - values[0, 1280, s])
        for s in (0, 1, 2)
    ]
    assert found.interaction.value == pytest.approx(np.mean(apart))


def test_one_seed_decides_nothing(mixes: Make) -> None:
    found = study(mixes(seeds=(0,), connectors=("linear",)))
    assert {one.word for one in found.synergies} == {"undecided"}
    assert all(fit.known for fit in found.fits.values())  # a law needs mixes, not seeds


def test_the_best_mix_is_that_of_the_truth(mixes: Make) -> None:
    found = study(mixes(connectors=("linear",)), "understanding=1", "generation=2", budget="5120")
    (best,) = found.optima
    shares = np.linspace(0, 1, 101)
    truth = [
        rate("linear", s * 5120, (1 - s) * 5120) + 2 * rate("linear", (1 - s) * 5120, s * 5120, 0.3)
        for s in shares
    ]
    assert best.share == pytest.approx(shares[int(np.argmax(truth))], abs=0.05)
    low, high = best.interval
    assert low <= best.share <= high
    assert found.weights == {"understanding/vqa": 1, "generation/digit": 2}
    assert best.values["understanding/vqa"][0] == pytest.approx(
        rate("linear", best.share * 5120, (1 - best.share) * 5120), abs=0.02
    )


def test_a_budget_may_be_one_of_seconds(mixes: Make) -> None:
    (best,) = study(mixes(connectors=("linear",)), budget="56.2s").optima
    assert best.path.understanding[-1] == pytest.approx(5120, rel=1e-3)  # 5 s and 0.01 s a sample
    assert best.path.generation[0] == pytest.approx(2560, rel=1e-3)


def test_a_measured_mix_that_takes_too_long_is_beyond_a_budget_of_seconds(mixes: Make) -> None:
    """5,120 samples of understanding take 56 s, as many of generation 107 s."""
    (best,) = study(mixes(connectors=("linear",)), "generation=1", budget="56.2s").optima
    assert best.measured is not None
    understanding, generation = map(int, re.findall(r"[ug](\d+)", best.measured.name))
    assert generation > 0
    assert 5 + 0.01 * understanding + 0.02 * generation <= 56.2 * 1.01


def test_mixes_as_good_as_the_best_reach_no_further_than_the_first_worse_one(mixes: Make) -> None:
    """Both ends of the budget are good and its middle is not."""

    def steep(own: float) -> float:
        return 1 - 0.9 / (1 + (own / 3000) ** 6)

    folder = mixes(
        understood=lambda c, u, g: steep(u),
        drawn=lambda c, u, g: steep(g),
        connectors=("linear",),
        spread=0.001,
    )
    (best,) = study(folder, budget="5120").optima
    low, high = best.flat
    assert best.known
    assert min(best.mean[0], best.mean[-1]) > best.mean.max() - 0.01  # both ends are as good
    assert low <= best.share <= high
    assert high - low < 0.5


def test_seeds_that_coincide_do_not_decide_which_mix_is_best(mixes: Make) -> None:
    (best,) = study(mixes(connectors=("linear",), spread=0)).optima
    assert best.measured is not None
    assert best.measured.second
    assert best.measured.lead is None


def test_a_setting_that_lacks_a_metric_is_shown_by_the_others(mixes: Make) -> None:
    folder = mixes(claim=False)
    for path in (folder / "metrics" / "evaluate").glob("perceiver*"):
        content = json.loads(path.read_text())
        del content["metrics"]["generation/digit"]
        path.write_text(json.dumps(content))
    report_ablation(folder, Wish())
    assert {"surfaces.png", "fronts.png"} <= {path.name for path in (folder / "output" / "report").iterdir()}


def test_what_lies_beyond_the_measured_is_said(mixes: Make) -> None:
    folder = mixes(connectors=("linear",))
    (best,) = study(folder, budget="100000").optima
    assert best.path.extrapolated
    report_ablation(folder, Wish(budget="100000"))
    assert "extrapolated: no mix of this size lies within what was measured" in page(folder)
    (inside,) = study(folder, budget="6400").optima
    assert not inside.path.extrapolated
    assert not inside.path.covered.all()  # 6400 of one alone was not measured
    assert inside.path.covered[inside.place]


def test_two_mixes_make_no_law_and_the_page_says_why(mixes: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mixes(cells=[(1280, 3840), (3840, 1280)], claim=False)
    found = study(folder)
    assert not any(fit.known for fit in found.fits.values())
    assert not found.synergies
    report_ablation(folder, Wish())
    text = page(folder)
    assert "a law needs at least 3 amounts of the task" in text
    assert "cannot be told here" in text
    assert "Best of the measured mixes within the budget" in " ".join(capsys.readouterr().out.split())


def test_one_mix_alone_is_reported_without_mixes(mixes: Make) -> None:
    folder = mixes(cells=[(1280, 1280)], claim=False)
    report_ablation(folder, Wish())
    assert "All arms have the same mix" in page(folder)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ablation of one setting, with its report."""
    folder = make_mixes(tmp_path_factory.mktemp("mine"), connectors=("linear",))
    report_ablation(folder, Wish())
    return folder


def test_the_page_needs_nothing_but_itself(reported: Path) -> None:
    text = page(reported)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", text)
    for heading in ("Design", "Results", "Laws", "The best mix", "Pareto fronts", "Cost", "Reproduce it"):
        assert f"<h2>{heading}</h2>" in text
    made = {path.name for path in (reported / "output" / "report").iterdir()}
    assert {"surfaces.png", "laws.png", "synergy.png", "best.png", "fronts.png", "report.tex"} <= made


def test_numbers_of_the_page_are_those_of_the_files(reported: Path) -> None:
    content = json.loads((reported / "output" / "report" / "report.json").read_text())["mixes"]
    effect = next(one for one in content["synergies"] if one["metric"] == "generation/digit")
    law = next(one for one in content["laws"] if one["metric"] == "generation/digit")
    text = page(reported)
    assert f"<td>{effect['change'] * 100:+.1f}</td>" in text
    assert f"{law['exchange'][0]:+.2f} ({law['exchange'][1]:+.2f} to {law['exchange'][2]:+.2f})" in text
    assert f"{content['best'][0]['share_of_understanding']:.0%} understanding" in text


def test_tables_are_latex(reported: Path) -> None:
    text = (reported / "output" / "report" / "report.tex").read_text()
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 3
    for body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S)[1:]:
        columns, rows = body
        for row in (line for line in rows.splitlines() if line.endswith("\\\\")):
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
    assert not re.search(r"(?<!\\)_|[^\x00-\x7f±°]", re.sub(r"\\label\{.*?\}", "", text))


def test_the_files_are_artifacts_of_a_run(
    mixes: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mixes(cells=[(1280, 3840), (3840, 1280)], connectors=("linear",), claim=False)
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_TRACKING", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    report_ablation(folder, Wish())
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (run,) = (one for one in client.search_runs([experiment.experiment_id]) if one.info.run_name == "report")
    assert run.info.status == "FINISHED"
    assert {"report.html", "report.tex", "report.csv", "report.json", "plots"} <= {
        item.path for item in client.list_artifacts(run.info.run_id)
    }


def test_an_unfinished_ablation_is_reported_as_far_as_it_goes(mixes: Make) -> None:
    folder = mixes(connectors=("linear",))
    for path in list((folder / "metrics" / "evaluate").glob("*u5120*")):
        path.unlink()
    report_ablation(folder, Wish())
    assert "Not there yet" in page(folder)


def test_the_example_is_reported_from_committed_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_TRACKING", "off")
    folder = tmp_path / "connectors_by_mix"
    shutil.copytree(EXAMPLE / "metrics", folder / "metrics")
    shutil.copy(EXAMPLE / "compare.yaml", folder)
    found = study(folder)
    assert [round(t.amounts.understanding) for t in found.trials[::3]] == [3375, 1566, 3375, 1566]
    assert "there are 2 and 2" in next(iter(found.fits.values())).law.refusal


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (["understandin=1"], "no rate 'understandin' (did you mean 'understanding'?)"),
        (["understanding=much"], "'understanding=much': expected NAME=WEIGHT"),
        (["understanding"], "'understanding': expected NAME=WEIGHT"),
        (["understanding=0", "generation=0"], "all weights are 0"),
    ],
)
def test_a_wrong_preference_is_named(stated: list[str], expected: str) -> None:
    leading = {"understanding": measure_of("understanding/vqa"), "generation": measure_of("generation/digit")}
    with pytest.raises(LabError, match=re.escape(expected)):
        read_preference(stated, leading, ["understanding/vqa", "generation/digit"])


@pytest.mark.parametrize("stated", ["much", "-5", "0", "10h", ""])
def test_a_wrong_budget_is_named(stated: str) -> None:
    with pytest.raises(LabError, match="expected samples such as 4800"):
        read_budget(stated)


def test_the_measured_range_is_the_hull_of_the_mixes() -> None:
    triangle = {(0.0, 10.0), (10.0, 0.0), (10.0, 10.0)}
    assert within(triangle, 8, 8)
    assert within(triangle, 5, 5)
    assert not within(triangle, 4, 4)
    line = {(0.0, 10.0), (5.0, 5.0), (10.0, 0.0)}
    assert within(line, 2.5, 7.5)
    assert not within(line, 5, 8)
    assert not within(line, 12, -2)


def test_the_command_finds_an_ablation_and_names_a_wrong_one(
    mixes: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mixes(connectors=("linear",))
    monkeypatch.chdir(folder.parents[2])
    assert cli.main(["report", str(folder), "--prefer", "generation=1"]) == 0
    assert "100%" not in capsys.readouterr().err
    assert cli.main(["report", "nine"]) == 2
    assert "no ablation 'nine'" in capsys.readouterr().err
    (folder.parents[2] / "params.yaml").touch()
    assert cli.main(["report", "."]) == 2
    assert "`lab compare` is its page" in capsys.readouterr().err


def page(folder: Path) -> str:
    return (folder / "output" / "report" / "report.html").read_text(encoding="utf-8")
