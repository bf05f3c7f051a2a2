"""Rungs: who goes on, and that whoever does ends with the weights of a training that was never paused."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from toys import RATED

from lab.graph.ablation import read_ablation
from lab.graph.arm import train
from lab.search.fidelity import Rungs
from lab.search.results import load
from lab.search.study import run


def trial(number: int, state: str = "RUNNING", paused: int = 0, **rungs: float) -> Any:
    """A trial with scores at rungs `r0`, `r1`, ..."""
    scores = {name[1:]: score for name, score in rungs.items()}
    return SimpleNamespace(
        number=number,
        state=SimpleNamespace(name=state),
        user_attrs={"paused": paused, **({"rungs": scores} if scores else {})},
    )


def test_one_of_three_goes_on_and_may_be_called_later() -> None:
    rungs = Rungs((50, 100), reduction=3)
    first = trial(0, paused=50, r0=0.5)
    waiting = [trial(9, "WAITING")]
    assert not rungs.goes_on(first, [first, *waiting])
    worse = [trial(1, paused=50, r0=0.1), trial(2, paused=50, r0=0.2)]
    everyone = [first, *worse, *waiting]
    assert rungs.goes_on(first, everyone)  # now that two worse ones have come
    assert not any(rungs.goes_on(one, everyone) for one in worse)


def test_at_the_end_the_best_of_a_rung_goes_on_however_few_there_are() -> None:
    rungs = Rungs((50, 100), reduction=3)
    pair = [trial(0, paused=50, r0=0.1), trial(1, paused=50, r0=0.2)]
    assert [rungs.goes_on(one, pair) for one in pair] == [False, True]
    further = [pair[0], trial(1, "COMPLETE", r0=0.2, r1=0.3)]
    assert not rungs.goes_on(pair[0], further)


def test_brackets_of_hyperband_skip_rungs() -> None:
    rungs = Rungs((10, 30, 90), reduction=3, brackets=3)
    brackets = [rungs.bracket(number) for number in range(27)]
    assert [brackets.count(bracket) for bracket in range(3)] == [18, 6, 3]
    assert rungs.steps(brackets.index(2), 16) == {90: 2}
    assert Rungs((160, 320), samples=True).steps(0, 16) == {10: 0, 20: 1}


def test_a_trial_may_wait_at_many_rungs(sweep: Path, no_plots: None) -> None:
    """To be called again is no death of a worker, of which a trial may have few."""
    sweep.write_text(f"{sweep.read_text()}fidelity: {{steps: [10, 20, 30, 40, 50, 60]}}\npruner: asha\n")
    run(str(sweep), 1, objective=RATED)
    (record,) = load(sweep).records
    assert record.state == "complete"
    assert list(record.curve) == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize(("pruner", "workers"), [("asha", 3), ("hyperband", 1)])
def test_few_trials_train_to_the_end(sweep: Path, no_plots: None, pruner: str, workers: int) -> None:
    text = sweep.read_text()
    sweep.write_text(f"{text}fidelity: {{steps: [20, 60]}}\npruner: {pruner}\nsampler: random\n")
    run(str(sweep), 12, workers, objective=RATED)
    records = load(sweep).records
    states = [record.state for record in records]
    assert set(states) == {"complete", "pruned"}
    assert 1 <= states.count("complete") <= 6
    ends = [max(record.curve) for record in records]
    if pruner == "asha":
        assert ends.count(20) >= 3  # two of three, but for those that looked good among the first
        assert all(20 in record.curve for record in records)
    best = max(records, key=lambda record: record.curve[max(record.curve)])
    assert best.state == "complete"


def weights(folder: Path) -> dict[str, bytes]:
    """The weights of all trained arms, by node."""
    files = (folder / ".lab" / "nodes").glob("*/text_decoder/model.safetensors")
    return {file.parts[-3]: file.read_bytes() for file in files}


def test_a_promoted_trial_has_the_weights_of_an_uninterrupted_training(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of real trainings is faked here: rungs at 2 and 6 of 12 steps, checkpoints at every fifth."""
    (tiny / "rungs.yaml").write_text(
        "objectives: {understanding/vqa: maximize}\nsampler: random\ntrials: 3\n"
        "set: {stages.instruct.steps: 12, stages.instruct.checkpoint_every: 5, stages.instruct.warmup: 3}\n"
        "space: {stages.instruct.learning_rate.connector: {log: [1.0e-4, 1.0e-2]}}\n"
        "fidelity: {steps: [2, 6]}\npruner: asha\n"
    )
    run("rungs.yaml")
    sweep = load("rungs.yaml")
    (done,) = sweep.complete
    assert sorted(done.curve) == [2, 6]
    assert all(max(record.curve) == 2 for record in sweep.records if record is not done)
    said = capsys.readouterr().out
    assert f"trial {done.number} waits at step 6" in said  # so it was paused, and went on later
    assert f"trial {done.number} goes on" in said
    # it shared what it could, trained what it had to, and left nothing of those that were not called
    assert "align@linear: reused" in said
    assert len(weights(tiny)) == 1
    assert not list((tiny / ".lab" / "work").glob("*/last.ckpt"))
    promoted = weights(tiny)
    shutil.rmtree(tiny / ".lab" / "nodes")
    train("output/sweeps/rungs/best.yaml", [])  # the declaration that the sweep wrote, in one go
    assert weights(tiny) == promoted
    tree = yaml.safe_load((tiny / "output/sweeps/rungs/best.yaml").read_text())
    rate = done.settings["stages.instruct.learning_rate.connector"]
    assert tree["stages"]["instruct"]["learning_rate"]["connector"] == rate


def test_an_ablation_starts_from_the_best_of_a_sweep(tiny: Path) -> None:
    """As its `base`, and the connector and mix of the best are those of every arm."""
    (tiny / "mixes.yaml").write_text(
        "objectives: {understanding/vqa: maximize, generation/scene: maximize}\nsampler: qmc\ntrials: 1\n"
        "set: {stages.instruct.steps: 2}\n"
        "space: {mix: {simplex: {look: {vqa: 3, caption: 1}, draw: {text_to_image: 1}}}}\n"
    )
    run("mixes.yaml")
    ablation = tiny / "experiments" / "ablations" / "seeds"
    ablation.mkdir(parents=True)
    (ablation / "ablation.yaml").write_text(
        "base: output/sweeps/mixes/front-0.yaml\n"
        "factors: {rate: {low: {stages.instruct.learning_rate.connector: 1.0e-4}, high: {}}}\n"
    )
    found = read_ablation(ablation / "ablation.yaml")
    assert {next(iter(arm.params.mixes)) for arm in found.arms} == {"swept"}
    assert load("mixes.yaml").complete[0].settings["mixes.swept"] == found.arms[0].params.mixes["swept"]
