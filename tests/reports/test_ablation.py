"""The comparison of an ablation: what it concludes from made-up numbers whose truth is known."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from scipy import stats

from lab import cli
from lab.errors import LabError
from lab.reports.ablation import compare_ablation, power_table, write_ablation
from lab.reports.ablation.analysis import Analysis, analyse, effect_notes, notes
from lab.reports.ablation.cost import cost_of
from lab.reports.ablation.design import DesignedArm
from lab.reports.ablation.effects import CELLS, TIMES, Effect, effects, model_of
from lab.reports.ablation.estimates import Measured
from lab.reports.ablation.results import read_results
from lab.reports.ablation.tables import sharing
from lab.reports.ablation.verdict import judge
from lab.reports.measures import GENERATION, UNDERSTANDING, measure_of

from .conftest import write_cost

Make = Callable[..., Path]
QUERIES = {"connector": ["linear", "q_former"], "mix": ["understanding", "even"], "queries": ["few", "many"]}


@pytest.fixture(autouse=True)
def _untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_TRACKING", "off")


def analysed(folder: Path) -> Analysis:
    return analyse(read_results(folder))


def measured(folder: Path, name: str = "generation/scene") -> Measured:
    return Measured(read_results(folder), measure_of(name))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "compare.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def rewrite(folder: Path, arm: str, metric: str, value: float) -> None:
    """Gives an evaluation another number, without scores behind it."""
    path = folder / "metrics" / "evaluate" / f"{arm}.json"
    content = json.loads(path.read_text())
    content["metrics"][metric] = value
    path.write_text(json.dumps(content))


def effect(found: list[Effect], term: str, change: str) -> Effect:
    (one,) = [e for e in found if (e.term, e.change) == (term, change)]
    return one


# Means and differences


def test_means_have_students_interval_over_seeds(ablation: Make) -> None:
    of = measured(ablation(seeds=(0, 1, 2, 3)))
    values = of.values[of.arms.index("q_former-even")]
    mean = of.mean("q_former-even")
    assert mean is not None
    assert mean.value == pytest.approx(values.mean())
    assert (mean.low, mean.high) == pytest.approx(stats.t.interval(0.95, 3, values.mean(), stats.sem(values)))
    assert (mean.over, mean.seeds) == ("seeds", 4)


def test_differences_are_paired_over_seeds_and_samples(ablation: Make) -> None:
    of = measured(ablation(drawn=lambda levels: 0.4 + 0.2 * (levels["mix"] == "even"), seeds=(0, 1, 2, 3)))
    found = of.difference("linear-even", "linear-understanding")
    assert found is not None
    rows = [of.values[of.arms.index(arm)] for arm in ("linear-even", "linear-understanding")]
    expected = stats.ttest_rel(*rows)
    assert found.over_seeds == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p >= expected.pvalue  # the larger of the two tests
    assert found.samples == 200
    assert found.joint is not None
    spread = (found.joint[1] - found.joint[0]) / 2
    unpaired = 1.96 * np.sqrt(0.4 * 0.6 / 200 + 0.6 * 0.4 / 200)  # as if each arm had samples of its own
    assert spread < 0.8 * unpaired


def test_one_seed_has_intervals_over_samples_and_convinces_nobody(ablation: Make) -> None:
    found = analysed(
        ablation(seeds=(0,), drawn=lambda levels: 0.2 + 0.6 * (levels["connector"] == "q_former"))
    )
    (column,) = [c for c in found.columns if c.measure == GENERATION]
    assert {mean.over for mean in column.means.values()} == {"samples"}
    assert column.winner is None
    assert found.verdict is not None
    assert found.verdict.word == "undecided"
    assert "One seed does not tell" in found.verdict.reason
    assert "second seed is needed" in found.verdict.plan
    assert not any(e.significant for e in column.effects)
    assert column.effects[0].over == "samples"
    assert "* over samples" in notes(found)[0]
    assert "over seeds" not in notes(found)[0]


def test_all_wrong_is_no_certainty(ablation: Make) -> None:
    """Zero of 200 at every seed: neither seeds nor a bootstrap show any spread."""
    of = measured(ablation(drawn=lambda levels: -9.0))
    mean = of.mean("linear-even")
    assert mean is not None
    assert (mean.value, mean.low, mean.over) == (0.0, 0.0, "wilson")
    assert mean.high == pytest.approx(stats.binomtest(0, 200).proportion_ci(method="wilson").high)


def test_all_wrong_is_no_certainty_without_scores_either(ablation: Make) -> None:
    """Metrics travel further than scores; evaluations state their interval."""
    folder = ablation(drawn=lambda levels: -9.0)
    for path in (folder / "output").rglob("scores.npz"):
        path.unlink()
    mean = measured(folder).mean("linear-even")
    assert mean is not None
    assert (mean.low, mean.high, mean.over) == (0.0, 0.06, "wilson")


def test_seeds_that_coincide_are_not_taken_for_certainty(ablation: Make) -> None:
    folder = ablation(spread=0.0, samples=40, seeds=(0, 1), drawn=lambda levels: 0.5)
    results = read_results(folder)
    for arm, right in (("linear-even", 20), ("q_former-even", 22)):
        for seed in (0, 1):
            scores = np.roll(np.r_[np.ones(right), np.zeros(40 - right)], right)
            path = folder / "output" / "evaluate" / f"{arm}-s{seed}" / "scores.npz"
            stored = dict(results.cells[arm, seed].scores) | {"generation/scene": scores}
            np.savez(path, **stored)
            rewrite(folder, f"{arm}-s{seed}", "generation/scene", right / 40)
    of = measured(folder)
    found = of.difference("q_former-even", "linear-even")
    assert found is not None
    assert found.over_seeds == pytest.approx((0.05, 0.05))
    assert not found.significant  # 22 against 20 of 40
    mean = of.mean("q_former-even")
    assert mean is not None
    assert mean.over == "samples"
    assert mean.low < 0.5 < mean.high
    for path in (folder / "output").rglob("scores.npz"):
        path.unlink()
    found = measured(folder).difference("q_former-even", "linear-even")
    assert found is not None
    assert np.isnan(found.p)  # nothing is left to judge by
    assert not found.significant


def test_only_a_significant_lead_is_marked(ablation: Make) -> None:
    close = analysed(ablation(spread=0.03))
    assert [column.winner for column in close.columns] == [None, None]
    clear = analysed(
        ablation(drawn=lambda levels: 0.3 + 0.4 * (levels == {"connector": "q_former", "mix": "even"}))
    )
    assert clear.columns[1].winner == "q_former-even"


def test_without_scores_seeds_alone_decide(ablation: Make) -> None:
    folder = ablation(drawn=lambda levels: 0.3 + 0.3 * (levels["connector"] == "q_former"))
    for path in (folder / "output").rglob("scores.npz"):
        path.unlink()
    verdict = judge(read_results(folder))
    assert verdict is not None
    assert verdict.estimate is not None
    assert verdict.estimate.joint is None
    assert verdict.word == "supported"


def test_scores_of_another_evaluation_are_not_used(ablation: Make) -> None:
    folder = ablation()
    rewrite(folder, "linear-even-s0", "generation/scene", 0.123)
    assert measured(folder).strata is None
    assert measured(folder, "understanding/vqa").strata is not None


# The claim


def test_the_claim_is_supported_by_matched_arms(ablation: Make) -> None:
    """The contrast is the mean over mixes of q_former less linear, per seed."""
    folder = ablation(drawn=lambda levels: 0.3 + 0.15 * (levels["connector"] == "q_former"))
    verdict = judge(read_results(folder))
    of = measured(folder)
    row = {arm: of.values[a] for a, arm in enumerate(of.arms)}
    by_hand = (
        row["q_former-understanding"]
        - row["linear-understanding"]
        + row["q_former-even"]
        - row["linear-even"]
    ) / 2
    assert verdict is not None
    assert verdict.estimate is not None
    assert list(verdict.estimate.by_seed.values()) == pytest.approx(by_hand)
    assert verdict.word == "supported"
    points = f"{by_hand.mean() * 100:.1f} points higher"
    assert points in verdict.sentence
    assert "Student's t over 3 seeds" in verdict.sentence
    assert "over 3 seeds and 200 samples" in verdict.sentence
    assert "averaged over 2 settings of mix" in verdict.sentence


@pytest.mark.parametrize(
    ("difference", "margin", "word"),
    [(0.3, 0.0, "supported"), (-0.3, 0.0, "contradicted"), (0.0, 0.0, "undecided"),
     (0.3, 0.1, "supported"), (0.1, 0.5, "contradicted")],
)  # fmt: skip
def test_the_verdict_follows_the_interval_and_the_margin(
    ablation: Make, difference: float, margin: float, word: str
) -> None:
    folder = ablation(drawn=lambda levels: 0.5 + difference * (levels["connector"] == "q_former"))
    edit(folder, lambda content: content["claim"].update(margin=margin))
    verdict = judge(read_results(folder))
    assert verdict is not None
    assert verdict.word == word
    if word == "undecided":
        assert re.search(r"[\d,]+ seeds in all would decide it with 80% power", verdict.plan)
    if margin == 0.5:
        assert "smallest difference that matters is 50.0 points" in verdict.reason
        assert "of the claimed sign, but smaller" in verdict.reason


def test_where_less_is_better_a_lower_value_speaks_for_the_claim(ablation: Make) -> None:
    folder = ablation(drawn=lambda levels: 0.3 + 0.2 * (levels["connector"] == "q_former"))
    edit(folder, lambda content: content["claim"].update(metric="generation/frechet"))
    verdict = judge(read_results(folder))
    assert verdict is not None
    assert verdict.estimate is not None
    assert verdict.word == "supported"
    assert verdict.estimate.value > 0
    assert "generation/frechet is" in verdict.reason
    assert " lower than with connector linear" in verdict.reason


def test_a_conditional_factor_is_averaged_on_the_side_that_has_it(ablation: Make) -> None:
    arms = [{"connector": "linear", "mix": mix} for mix in QUERIES["mix"]]
    arms += [
        {"connector": "q_former", "mix": m, "queries": q} for m in QUERIES["mix"] for q in QUERIES["queries"]
    ]
    folder = ablation(factors=QUERIES, arms=arms)
    verdict = judge(read_results(folder))
    of = measured(folder)
    row = {arm: of.values[a] for a, arm in enumerate(of.arms)}
    expected = np.mean(
        [
            (row[f"q_former-{mix}-few"] + row[f"q_former-{mix}-many"]) / 2 - row[f"linear-{mix}"]
            for mix in QUERIES["mix"]
        ]
    )
    assert verdict is not None
    assert verdict.estimate is not None
    assert verdict.estimate.value == pytest.approx(expected)


def test_an_unfinished_ablation_is_compared_as_far_as_it_goes(ablation: Make) -> None:
    folder = ablation()
    for label in ("q_former-even-s1", "q_former-even-s2", "linear-understanding-s2"):
        (folder / "metrics" / "evaluate" / f"{label}.json").unlink()
    found = analysed(folder)
    assert any(
        "evaluate@q_former-even-s1" in note and "evaluate@linear-understanding-s2" in note
        for note in notes(found)
    )
    assert found.verdict is not None
    assert found.verdict.estimate is not None
    # The mix `understanding` has both sides at seeds 0 and 1, `even` at seed 0 alone.
    assert set(found.verdict.estimate.by_seed) == {0, 1}
    assert "averaged over 1 of 2 settings" in found.verdict.reason
    difference = found.columns[1].measured.difference("q_former-even", "linear-even")
    assert difference is not None
    assert set(difference.by_seed) == {0}


def test_a_claim_that_cannot_be_judged_says_why(ablation: Make) -> None:
    folder = ablation()
    edit(folder, lambda content: content["claim"].update(metric="generation/scenes"))
    with pytest.raises(
        LabError, match=r"no arm has 'generation/scenes' \(did you mean 'generation/scene'\?\)"
    ):
        judge(read_results(folder))
    only = [{"connector": "linear", "mix": "even"}, {"connector": "q_former", "mix": "understanding"}]
    folder = ablation(arms=only)
    with pytest.raises(LabError, match="no arm with connector q_former has a partner"):
        judge(read_results(folder))


# Effects


def test_effects_are_differences_of_marginal_means(ablation: Make) -> None:
    folder = ablation(factors={"connector": ["linear", "q_former", "mlp"], "mix": ["understanding", "even"]})
    found = analysed(folder)
    column = found.columns[1]
    rates = {arm: mean.value for arm, mean in column.means.items()}
    one = effect(list(column.effects), "mix", "even - understanding")
    assert one.value == pytest.approx(
        np.mean([rates[f"{c}-even"] - rates[f"{c}-understanding"] for c in ("linear", "q_former", "mlp")])
    )
    two = effect(list(column.effects), f"connector{TIMES}mix", f"(mlp - linear){TIMES}(even - understanding)")
    assert two.value == pytest.approx(
        rates["mlp-even"] - rates["mlp-understanding"] - rates["linear-even"] + rates["linear-understanding"]
    )
    assert len(column.effects) == 2 + 1 + 2
    assert all(e.holm >= e.p for e in column.effects)


def test_two_arms_give_the_paired_t_test(ablation: Make) -> None:
    folder = ablation(factors={"connector": ["linear"], "mix": ["understanding", "even"]}, claim=None)
    of = measured(folder)
    (one,), _ = effects(of, {"mix": ["understanding", "even"]}, read_results(folder).arms)
    expected = stats.ttest_rel(of.values[1], of.values[0])
    assert one.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert one.freedom == 2


def test_levels_that_share_training_are_judged_over_seeds(ablation: Make) -> None:
    folder = ablation()
    of = measured(folder)
    found, _ = effects(of, QUERIES, read_results(folder).arms)
    one = effect(found, "connector", "q_former - linear")
    row = {arm: of.values[a] for a, arm in enumerate(of.arms)}
    expected = stats.ttest_rel(
        (row["q_former-even"] + row["q_former-understanding"]) / 2,
        (row["linear-even"] + row["linear-understanding"]) / 2,
    )
    assert (one.over, one.freedom) == ("seeds", 2)
    assert one.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    # 12 cells less 6 alignments, 1 for the mix and 1 for the interaction
    two = effect(found, "mix", "even - understanding")
    assert (two.over, two.freedom) == (CELLS, 4)


class Luck:
    """Values of arms whose alignment is shared, without any effect: in place of `Measured`."""

    def __init__(
        self, arms: list[DesignedArm], seeds: int, shared: float, generator: np.random.Generator
    ) -> None:
        self.seeds = list(range(seeds))
        connectors = [arm.levels["connector"] for arm in arms]
        luck = generator.normal(0, shared, (len(arms), seeds))
        first = [connectors.index(word) for word in connectors]
        self.values = luck[first] + generator.normal(0, 1, (len(arms), seeds))

    def joint(self, weights: np.ndarray, places: list[int]) -> tuple[None, float]:
        return None, float("nan")


def test_shared_luck_raises_no_false_alarms() -> None:
    """Three mixes on one alignment are not three witnesses for its connector."""
    factors = {"connector": ["a", "b"], "mix": ["x", "y", "z"]}
    arms = [
        DesignedArm(
            f"{c}-{m}",
            {"connector": c, "mix": m},
            {s: f"{c}-{m}-s{s}" for s in range(4)},
            {s: (f"encoder@s{s}", f"align@{c}-s{s}", f"instruct@{c}-{m}-s{s}") for s in range(4)},
        )
        for c in factors["connector"]
        for m in factors["mix"]
    ]
    apart = [DesignedArm(arm.name, arm.levels, arm.evaluate, {}) for arm in arms]
    generator = np.random.default_rng(0)
    alarms: dict[str, list[bool]] = {"connector": [], "mix": [], "naive": []}
    for _ in range(400):
        of: Any = Luck(arms, 4, 2.0, generator)
        found, _ = effects(of, factors, arms)
        alarms["connector"].append(effect(found, "connector", "b - a").p < 0.05)
        alarms["mix"].append(effect(found, "mix", "y - x").p < 0.05)
        naive, _ = effects(of, factors, apart)
        alarms["naive"].append(effect(naive, "connector", "b - a").p < 0.05)
    assert np.mean(alarms["connector"]) == pytest.approx(0.05, abs=0.03)
    assert np.mean(alarms["mix"]) == pytest.approx(0.05, abs=0.03)
    assert np.mean(alarms["naive"]) > 0.15  # what the blocks are for


def arms_of(*rows: str) -> list[DesignedArm]:
    factors = ("a", "b", "c", "d")
    return [
        DesignedArm(
            row, {f: f"{f}{level}" for f, level in zip(factors, row, strict=False) if level != "."}, {}, {}
        )
        for row in rows
    ]


LEVELS = {name: (f"{name}0", f"{name}1") for name in "abcd"}


def test_a_half_fraction_names_what_it_cannot_tell_apart() -> None:
    model = model_of(LEVELS, arms_of("001", "010", "100", "111"))  # c = ab
    assert [names for names, _, _ in model.contrasts] == [("a",), ("b",), ("c",)]
    assert model.aliases == {("a",): [f"b{TIMES}c"], ("b",): [f"a{TIMES}c"], ("c",): [f"a{TIMES}b"]}
    rows = [
        f"{a}{b}{c}{(a + b + c) % 2}" for a in range(2) for b in range(2) for c in range(2)
    ]  # resolution IV
    model = model_of(LEVELS, arms_of(*rows))
    assert len(model.contrasts) == 4 + 3
    assert model.aliases[("a", "b")] == [f"c{TIMES}d"]
    assert not model.inseparable


def test_a_missing_combination_is_named_and_the_rest_estimated() -> None:
    model = model_of(LEVELS, arms_of("00", "01", "10"))
    assert [names for names, _, _ in model.contrasts] == [("a",), ("b",)]
    assert model.inseparable == [f"a{TIMES}b"]


def test_conditional_factors_count_within_the_arms_that_have_them() -> None:
    model = model_of(LEVELS, arms_of("00.", "01.", "100", "101", "110", "111"))  # c where a is 1
    assert [names for names, _, _ in model.contrasts] == [("a",), ("b",), ("c",), ("a", "b"), ("b", "c")]
    values = np.array([1.0, 2.0, 5.0, 9.0, 6.0, 12.0])
    fitted = np.linalg.pinv(model.matrix) @ values
    found = {names: contrast @ fitted for names, _, contrast in model.contrasts}
    assert found[("c",)] == pytest.approx(((9 - 5) + (12 - 6)) / 2)
    assert found[("a",)] == pytest.approx((5 + 9 + 6 + 12) / 4 - 1.5)
    assert found[("b", "c")] == pytest.approx((12 - 6) - (9 - 5))


def test_aliases_of_the_declaration_are_passed_on(ablation: Make) -> None:
    found = analysed(ablation(aliases=["connector*mix = width"]))
    assert any("connector*mix = width" in note for note in effect_notes(found))


# Cost


def test_cost_counts_shared_nodes_once_in_all_and_in_full_for_an_arm(ablation: Make) -> None:
    cost = cost_of(read_results(ablation()))
    assert cost.arms["linear-even"]["seconds"] == 60 + 20 + 80
    assert cost.alone["seconds"] == 4 * 3 * 160
    assert cost.distinct["seconds"] == 3 * (60 + 2 * 20 + 4 * 80)
    assert cost.saved("seconds") == pytest.approx(1 - 1260 / 1920)
    assert (cost.shared[0].node, cost.shared[0].uses) == ("encoder@s0", 4)
    assert cost.budget == dict.fromkeys(cost.arms, 6400.0)
    assert not cost.remarks


@pytest.mark.parametrize(("samples", "said"), [(6430, False), (6500, True)])
def test_a_budget_that_differs_by_more_than_a_percent_is_labelled(
    ablation: Make, samples: int, said: bool
) -> None:
    folder = ablation()
    for seed in range(3):
        path = folder / "metrics" / "instruct" / f"q_former-even-s{seed}.json"
        path.write_text(json.dumps({"cost/samples": samples, "cost/train_seconds": 80.0}))
    found = analysed(folder)
    labelled = [note for note in notes(found) if "different budgets: from 6,400 samples" in note]
    assert bool(labelled) == said
    assert any("Off the declared 6,400 samples" in note for note in notes(found)) == said


def test_shared_features_are_named(ablation: Make) -> None:
    folder = ablation()
    assert not any("cached features" in line for line in sharing(analysed(folder)))

    def cache(content: dict[str, Any]) -> None:
        for arm in content["arms"].values():
            for seed, nodes in arm["cost"].items():
                nodes.insert(2, f"instruct_features@{arm['levels']['mix']}-s{seed}")

    edit(folder, cache)
    for mix in ("understanding", "even"):
        write_cost(folder, f"instruct_features@{mix}-s0", train_seconds=5.0)
    (said,) = [line for line in sharing(analysed(folder)) if "cached features" in line]
    assert "instruct_features@even-s0 (used 2 times)" in said


def test_training_that_no_seed_repeats_is_named(ablation: Make) -> None:
    folder = ablation()

    def share(content: dict[str, Any]) -> None:
        for arm in content["arms"].values():
            for nodes in arm["cost"].values():
                nodes[0] = "encoder@all"

    edit(folder, share)
    assert any("Trained once for several seeds: encoder@all" in note for note in notes(analysed(folder)))


# What is written


def test_every_form_is_written_and_the_page_opens_with_the_verdict(
    ablation: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ablation(drawn=lambda levels: 0.3 + 0.2 * (levels["connector"] == "q_former"), pictures=True)
    compare_ablation(folder)
    said = capsys.readouterr().out
    for word in ("Supported: with connector q_former", "Effects on generation/scene", "Sharing saved 34%"):
        assert word in said
    output = folder / "output" / "compare"
    names = {path.name for path in output.iterdir()}
    pictures = {f"{name}.png" for name in ("claim", "arms", "effects", "interactions", "front", "samples")}
    assert names == pictures | {f"comparison.{kind}" for kind in ("md", "csv", "tex", "json", "html")}
    for name in pictures:
        with Image.open(output / name) as image:
            assert min(image.size) > 150
    page = (output / "comparison.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    order = [
        "Supported",
        "<h2>Design",
        "<h2>Results",
        "<h2>Effects",
        "<h2>Cost",
        "<h2>Samples",
        "<h2>Reproduce",
    ]
    places = [page.index(word) for word in order]
    assert places == sorted(places)
    numbers = json.loads((folder / "metrics" / "comparison.json").read_text())
    assert numbers["claim"]["verdict"] == "supported"
    assert numbers["claim"]["low"] < numbers["claim"]["difference"] < numbers["claim"]["high"]
    assert numbers["arms"].keys() == {
        f"{c}-{m}" for c in ("linear", "q_former") for m in ("understanding", "even")
    }


def test_the_csv_holds_every_number(ablation: Make, tmp_path: Path) -> None:
    folder = ablation()
    write_ablation(folder, tmp_path / "out")
    with open(tmp_path / "out" / "comparison.csv") as file:
        rows = list(csv.DictReader(file))
    results = read_results(folder)
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in {row["kind"] for row in rows}}
    assert len(kinds["value"]) == sum(len(cell.metrics) for cell in results.cells.values())
    assert len(kinds["mean"]) == 4 * len(results.metrics)
    assert len(kinds["difference"]) == 2 * 6
    assert len(kinds["effect"]) == 2 * 3
    assert len(kinds["claim"]) == 1
    (row,) = [
        row for row in kinds["value"] if row["arm"] == "linear-even" and row["seed"] == "1"
        and row["metric"] == "understanding/vqa/where"
    ]  # fmt: skip
    assert float(row["value"]) == pytest.approx(results.cells["linear-even", 1].metrics[row["metric"]])


def test_bold_is_for_significant_leads_in_every_form(ablation: Make, tmp_path: Path) -> None:
    folder = ablation(drawn=lambda levels: 0.3 + 0.4 * (levels == {"connector": "q_former", "mix": "even"}))
    write_ablation(folder, tmp_path / "out")
    latex = (tmp_path / "out" / "comparison.tex").read_text()
    assert latex.count(r"\textbf{") == 1
    assert r"q\_former-even & " in latex
    assert not re.search(r"(?<!\\)_", latex)
    assert latex.count("{") == latex.count("}")
    caption = next(line for line in latex.splitlines() if line.startswith(r"\caption"))
    assert "interval over seeds 0, 1, 2 (Student's t)" in caption
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert re.search(r"\| q_former-even \| [\d.]+ ±[\d.]+ \| \*\*[\d.]+\*\*", markdown)
    assert (tmp_path / "out" / "comparison.html").read_text().count('<td class="best ') == 1


def test_same_numbers_give_the_same_bytes(ablation: Make) -> None:
    folder = ablation(pictures=True)
    contents = []
    for name in ("one", "two"):
        write_ablation(folder, folder / name)
        contents.append({path.name: path.read_bytes() for path in (folder / name).iterdir()})
    assert contents[0] == contents[1]


def test_a_page_of_nothing_but_one_seed_of_one_arm(ablation: Make, tmp_path: Path) -> None:
    folder = ablation(claim=None, budget=None, metrics=())
    for path in (folder / "metrics" / "evaluate").glob("*.json"):
        if path.stem != "linear-even-s1":
            path.unlink()
    numbers = write_ablation(folder, tmp_path / "out")
    assert numbers["missing"] == 11
    assert list(numbers["arms"]) == ["linear-even"]
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "No claim" in page
    assert "No factor takes two levels" in page


def test_arms_get_their_means_and_intervals_in_the_records(
    ablation: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, tuple[dict[str, str], dict[str, float]]] = {}
    monkeypatch.setattr(
        "lab.reports.ablation.write.log_arm",
        lambda experiment, arm, params, metrics: logged.update({f"{experiment}/{arm}": (params, metrics)}),
    )
    folder = ablation()
    write_ablation(folder, tmp_path / "out")
    params, metrics = logged["connectors_by_mix/q_former-even"]
    assert params == {"encoder": "vit", "connector": "q_former", "mix": "even"}
    mean = measured(folder).mean("q_former-even")
    assert mean is not None
    assert metrics["generation/scene"] == pytest.approx(mean.value)
    assert metrics["generation/scene_low"] == pytest.approx(mean.low)
    assert metrics["generation/scene_high"] == pytest.approx(mean.high)


def test_the_front_is_of_means(ablation: Make) -> None:
    found = analysed(
        ablation(
            drawn=lambda levels: 0.3 + 0.3 * (levels["mix"] == "even"),
            understood=lambda levels: (
                0.8 - 0.3 * (levels["mix"] == "even") - 0.2 * (levels["connector"] == "linear")
            ),
            metrics=(UNDERSTANDING.name,),
        )
    )
    assert "q_former-understanding" in found.front
    assert "linear-understanding" not in found.front


# The command, and the planner


def test_the_command_finds_an_ablation_by_its_name(
    ablation: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ablation()
    monkeypatch.chdir(folder)
    assert cli.main(["compare"]) == 0
    assert "connectors_by_mix: 4 arms, seeds 0, 1, 2" in capsys.readouterr().out
    (folder / "ablation.yaml").write_text("factors: {}\n")
    (folder / "compare.yaml").unlink()
    assert cli.main(["compare"]) == 2
    assert "not compiled; run `lab graph compile connectors_by_mix`" in capsys.readouterr().err


def test_broken_files_are_said_in_one_line(ablation: Make) -> None:
    folder = ablation()
    edit(folder, lambda content: content["claim"].update(higher={"connecter": "q_former"}))
    with pytest.raises(
        LabError, match=r"claim\.higher: no factor 'connecter' \(did you mean 'connector'\?\)"
    ):
        read_results(folder)
    (folder / "compare.yaml").write_text("name: x\n")
    with pytest.raises(LabError, match=r"compare\.yaml: not as the compiler writes it .*lab graph compile"):
        read_results(folder)
    folder = ablation()
    (folder / "output" / "evaluate" / "linear-even-s0" / "scores.npz").write_bytes(b"PK")
    with pytest.raises(LabError, match=r"scores\.npz: not a file of scores"):
        read_results(folder)
    for path in (folder / "metrics" / "evaluate").glob("*.json"):
        path.unlink()
    with pytest.raises(LabError, match=r"nothing to compare: .*lab graph run connectors_by_mix"):
        read_results(folder)


def shown(folder: Path) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(power_table(folder))
    return console.export_text()


def test_the_planner_is_general_before_a_pilot_and_concrete_after(ablation: Make) -> None:
    folder = ablation(seeds=(0,))
    general = shown(folder)
    assert "No pilot yet" in general
    assert re.search(r"seeds, paired\s+34\s+10\s+6\s+5\s+4\s+3", general)
    assert re.search(r"unpaired\s+64\s+17\s+9\s+6\s+4\s+3", general)
    folder = ablation(spread=0.03)
    edit(folder, lambda content: content["claim"].update(margin=0.03))
    concrete = shown(folder)
    assert "generation/scene: q_former less linear, paired; SD between seeds" in concrete
    assert "3.0 points (margin)" in concrete
    assert "points (seen)" in concrete
    edit(folder, lambda content: content.update(claim=None))
    assert "the pair of median spread" in shown(folder)
