"""The whole evaluation of an arm: complete, honest about its samples, and the same every time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.config import EvaluateParams
from lab.evaluation.arm import evaluate_arm
from lab.evaluation.captioning import caption_figures
from lab.models.arm import Arm
from lab.registry import build
from lab.scenes.digits import load_patches, split_instances
from lab.scenes.judge import Judge
from lab.scenes.language import QUESTIONS
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import World, WorldSplit, compose

SETTINGS = EvaluateParams(questions=5, captions=6, prompts=8, edits=4, texts=4, batch_size=50)
Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(new_arm: Callable[..., Arm], held_out: SceneTasks, tmp_path: Path) -> Evaluate:
    def run(tasks: SceneTasks = held_out, batch_size: int = 50, in_context: bool = False) -> dict[str, Any]:
        arm = new_arm()
        arm.model.eval()
        decoder = build("image_decoder", {"name": "transformer", "dim": 32}, 24, 16, 32).eval()
        judge = Judge(tasks.split.world).eval()
        settings = EvaluateParams(**{**vars(SETTINGS), "batch_size": batch_size})
        return evaluate_arm(arm, decoder, judge, tasks, settings, 0, tmp_path, in_context)

    return run


def test_every_figure_has_an_interval(evaluate: Evaluate) -> None:
    result = evaluate()
    metrics, intervals = result["metrics"], result["intervals"]
    kinds = [f"understanding/vqa/{kind}" for kind in QUESTIONS]
    assert metrics["understanding/vqa"] == pytest.approx(np.mean([metrics[kind] for kind in kinds]))
    assert {
        "generation/digit",
        "generation/scene",
        "generation/edit",
        "reconstruction/psnr",
    } <= metrics.keys()
    for name, (low, high) in intervals.items():
        assert low <= metrics[name] <= high
    ends = [
        name for name in intervals if metrics[name] in (0, 1) and "cider" not in name and "bleu" not in name
    ]
    assert ends  # it is not trained
    assert all(intervals[name][0] < intervals[name][1] for name in ends)
    assert metrics.keys() - intervals.keys() == {"cost/evaluate_seconds"}
    assert set(result["chance"]) == {"understanding/vqa", *kinds}
    assert result["samples"] > 5 * len(QUESTIONS)
    json.dumps(result)  # plain numbers throughout


def test_questions_by_example_are_of_arms_that_learned_from_such(evaluate: Evaluate) -> None:
    result = evaluate(in_context=True)
    shots = ["", "/shots_0", "/shots_1", "/shots_4"]
    figures = {f"understanding/by_example{one}" for one in shots}
    assert result["metrics"].keys() - evaluate()["metrics"].keys() == figures
    assert all(result["chance"][name] == pytest.approx(1 / 3) for name in figures)
    assert figures <= result["intervals"].keys()


def test_it_is_the_same_every_time_and_whatever_the_batch(evaluate: Evaluate, tmp_path: Path) -> None:
    one = evaluate()
    answers = (tmp_path / "answers.json").read_text()
    two = evaluate()
    assert (tmp_path / "answers.json").read_text() == answers
    three = evaluate(batch_size=3)
    for result in (one, two, three):
        del result["metrics"]["cost/evaluate_seconds"]
    assert one == two
    for part in ("metrics", "chance"):
        assert three[part] == pytest.approx(one[part], rel=1e-4)


def test_the_score_of_every_sample_is_kept(evaluate: Evaluate, tmp_path: Path) -> None:
    """Comparisons pair arms sample by sample; DVC caches outputs by content."""
    metrics = evaluate()["metrics"]
    file = tmp_path / "scores.npz"
    content = file.read_bytes()
    with np.load(file, allow_pickle=False) as scores:
        for name in scores.files:
            assert scores[name].mean() == pytest.approx(metrics[name])
        assert {
            "generation/scene",
            "understanding/caption",
            *(f"understanding/vqa/{k}" for k in QUESTIONS),
        } <= {*scores.files}
        assert scores["generation/scene"].shape == (8,)
    evaluate()
    assert file.read_bytes() == content


def test_what_it_leaves_can_be_looked_at(evaluate: Evaluate, tmp_path: Path) -> None:
    from PIL import Image

    evaluate()
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert len(answers) == 5 * len(QUESTIONS) + 6
    assert answers[0].keys() == {"kind", "id", "question", "expected", "given"}
    with np.load(tmp_path / "samples.npz") as stored:
        for name in ("real", "reconstructed", "generated"):
            assert stored[name].shape == (8, 3, 32, 32)
            assert stored[name].dtype == np.uint8
    shown = json.loads((tmp_path / "samples.json").read_text())
    assert len(shown) == 6
    assert all({"question", "answer", "predicted", "prompt"} <= record.keys() for record in shown)
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.size == (8 * 32 * 3, 3 * 32 * 3)


def test_a_world_without_pairs_asks_no_question_about_two(evaluate: Evaluate) -> None:
    """Scenes of one digit: nothing to compare or to add, and the average is over what was asked."""
    world = World(max_digits=1, variants=1)
    digits = load_patches(split_instances(0)["test"], 1, 0)
    tasks = SceneTasks(WorldSplit(world, digits, compose(world, digits, 20, 0)))
    result = evaluate(tasks)
    metrics = result["metrics"]
    asked = [kind for kind in QUESTIONS if f"understanding/vqa/{kind}" in metrics]
    assert set(QUESTIONS) - set(asked) == {"compare", "add"}
    assert metrics["understanding/vqa"] == pytest.approx(
        np.mean([metrics[f"understanding/vqa/{k}"] for k in asked])
    )


def test_what_more_is_said_of_captions_and_drawings(evaluate: Evaluate, tmp_path: Path) -> None:
    """The same answers and images, by the metrics that have tests of their own."""
    result = evaluate()
    metrics, intervals = result["metrics"], result["intervals"]
    answers = [one for one in json.loads((tmp_path / "answers.json").read_text()) if one["kind"] == "caption"]
    figures = caption_figures([one["given"] for one in answers], [[one["expected"]] for one in answers])
    for name, figure in figures.items():
        assert metrics[f"understanding/caption_{name}"] == pytest.approx(figure.value)
        assert f"understanding/caption_{name}" in intervals
    with np.load(tmp_path / "scores.npz", allow_pickle=False) as scores:
        both = scores["generation/edit_target"] * scores["generation/edit_rest"]
        assert both.tolist() == scores["generation/edit"].tolist()
        whole = scores["generation/scene"]
        for name in ("objects", "count", "attribution"):
            assert (scores[f"generation/{name}"] >= whole).all()
