"""Boxes that a model says: what they score, and what guessing would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.config import EvaluateParams
from lab.evaluation.arm import evaluate_arm
from lab.evaluation.grounding import box_requests, grounding_scores
from lab.evaluation.reading import boxes as protocol_boxes
from lab.evaluation.subject import Asking, Subject
from lab.evaluation.understanding import Answer, answer_all
from lab.models.arm import Arm
from lab.registry import build
from lab.samples.segments import EOS, Sample
from lab.samples.tokenizer import Tokenizer
from lab.scenes.digits import load_patches, split_instances
from lab.scenes.judge import Judge
from lab.scenes.locations import read_box, write_box
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import World, WorldSplit, compose

LOCATED = ("understanding/grounding", "understanding/grounding_iou", "understanding/grounding_well_formed")


def with_locations(bins: int, count: int = 200) -> SceneTasks:
    world = World(variants=2, locations=bins)
    digits = load_patches(split_instances(0)["test"], 2, 0)
    return SceneTasks(WorldSplit(world, digits, compose(world, digits, count, 0)))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Of a world with boxes: the arms of this file know its words."""
    return Tokenizer.of_words(with_locations(8, 1).language.vocabulary())


def said(expected: str, given: str, sample_id: str = "id") -> Answer:
    return Answer(sample_id, "ground", "asked", expected, given)


def oracle(samples: list[Sample]) -> list[Answer]:
    """What a model that knows all says."""
    right = [(sample.segments[-1].text or "").removesuffix(EOS).strip() for sample in samples]
    return [said(text, text, sample.id) for sample, text in zip(samples, right, strict=True)]


@pytest.mark.parametrize("bins", [8, 16, 32])
def test_who_knows_all_is_right(bins: int) -> None:
    """Up to the bins: the true boxes are those of the pixels."""
    tasks = with_locations(bins)
    samples, boxes = box_requests(tasks, 150, seed=3)
    assert len(samples) == len(boxes) == 150
    scores = grounding_scores(oracle(samples), boxes, tasks.split.world)
    assert scores.well_formed.mean() == 1
    assert scores.right.mean() > 0.97
    assert 0.7 < scores.iou.mean() < 1
    assert 0.25 < scores.chance < 0.4
    assert scores.chance_iou < 0.3


def test_scores_by_hand() -> None:
    world = World(locations=8)  # bins of 4 px
    true = np.array([2, 2, 14, 14])
    boxes = {"a": true, "b": true, "c": true, "d": true}
    replies = [
        "<loc_0> <loc_27>",  # 2, 2, 14, 14
        "<loc_0> <loc_19>",  # 2, 2, 14, 10: two thirds
        "<loc_0> <loc_11>",  # 2, 2, 14, 6: a third
        "<loc_36> <loc_63>",  # 18, 18, 30, 30: none
    ]
    answers = [said("", reply, key) for key, reply in zip(boxes, replies, strict=True)]
    scores = grounding_scores(answers, boxes, world)
    np.testing.assert_allclose(scores.iou, [1, 2 / 3, 1 / 3, 0])
    assert scores.right.tolist() == [1, 1, 0, 0]
    assert scores.well_formed.tolist() == [1, 1, 1, 1]
    assert scores.chance == scores.chance_iou == 1  # all boxes are the same


@pytest.mark.parametrize("given", ["", "nowhere", "<loc_0>", "<loc_27> <loc_0>", "<loc_0> <loc_27> <loc_27>"])
def test_malformed_is_wrong(given: str) -> None:
    boxes = {"a": np.array([2, 2, 14, 14]), "b": np.array([2, 2, 14, 14])}
    scores = grounding_scores(
        [said("", given, "a"), said("", "<loc_0> <loc_27>", "b")], boxes, World(locations=8)
    )
    assert scores.well_formed.tolist() == [0, 1]
    assert scores.iou.tolist() == [0, 1]
    assert scores.right.tolist() == [0, 1]


def test_chance_is_the_best_that_one_answer_to_all_could_do() -> None:
    tasks = with_locations(6)
    samples, boxes = box_requests(tasks, 12, seed=0)
    scores = grounding_scores(oracle(samples), boxes, tasks.split.world)
    texts = [f"<loc_{first}> <loc_{last}>" for first in range(36) for last in range(36)]
    constants = [box for text in texts if (box := read_box(tasks.split.world, text)) is not None]
    found = np.array([[overlap(box, boxes[sample.id]) for sample in samples] for box in constants])
    accuracy, mean = (found >= 0.5).mean(axis=1).max(), found.mean(axis=1).max()
    assert scores.chance == pytest.approx(accuracy)
    assert scores.chance_iou == pytest.approx(mean)


def overlap(box: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union."""
    width, height = (min(box[axis + 2], true[axis + 2]) - max(box[axis], true[axis]) for axis in range(2))
    both = max(0.0, width) * max(0.0, height)
    return float(both / (np.prod(box[2:] - box[:2]) + np.prod(true[2:] - true[:2]) - both))


def test_boxes_of_other_images_score_no_more_than_chance() -> None:
    tasks = with_locations(16)
    samples, boxes = box_requests(tasks, 200, seed=0)
    answers = oracle(samples)
    shuffled = [
        said(one.expected, other.given, one.sample_id)
        for one, other in zip(answers, answers[1:] + answers[:1], strict=True)
    ]
    scores = grounding_scores(shuffled, boxes, tasks.split.world)
    assert scores.right.mean() <= scores.chance
    assert scores.iou.mean() <= scores.chance_iou


def test_order_of_answers_changes_nothing() -> None:
    tasks = with_locations(8)
    samples, boxes = box_requests(tasks, 20, seed=0)
    one = grounding_scores(oracle(samples), boxes, tasks.split.world)
    two = grounding_scores(oracle(samples)[::-1], boxes, tasks.split.world)
    np.testing.assert_array_equal(one.iou, two.iou[::-1])
    assert (one.chance, one.chance_iou) == pytest.approx((two.chance, two.chance_iou))


def test_a_model_is_asked(new_arm: Callable[..., Arm]) -> None:
    tasks = with_locations(8, 20)
    arm = new_arm()
    arm.model.eval()
    samples, boxes = box_requests(tasks, 6, seed=0)
    answers = answer_all(arm.model, samples, arm.tokenizer, arm.collate(tuple(tasks.tasks), left=True), 4)
    assert {one.sample_id for one in answers} == set(boxes)
    assert {one.kind for one in answers} == {"ground"}
    for one in answers:
        assert one.expected == write_box(tasks.split.world, boxes[one.sample_id])
        assert "box" in one.question.split()


def evaluated(arm: Arm, tasks: SceneTasks, out: Path) -> dict[str, Any]:
    settings = EvaluateParams(questions=5, captions=4, prompts=4, edits=2, texts=2, batch_size=50)
    decoder = build("image_decoder", {"name": "transformer", "dim": 32}, 24, 16, 32).eval()
    return evaluate_arm(arm, decoder, Judge(tasks.split.world).eval(), tasks, settings, 0, out)


def test_the_evaluation_has_it_where_the_world_has_boxes(new_arm: Callable[..., Arm], tmp_path: Path) -> None:
    """And no other number or answer changes."""
    import torch

    arm = new_arm()
    arm.model.eval()
    results, answers = [], []
    for bins in (0, 8):
        torch.manual_seed(0)
        results.append(evaluated(arm, with_locations(bins, 20), tmp_path))
        answers.append(json.loads((tmp_path / "answers.json").read_text()))
    without, found = results
    for part in ("metrics", "intervals"):
        new = {key: found[part].pop(key) for key in LOCATED}
        assert part == "metrics" or all(0 <= low <= high <= 1 for low, high in new.values())
    assert all(0 < found["chance"].pop(key) < 1 for key in LOCATED[:2])
    for result in results:
        del result["metrics"]["cost/evaluate_seconds"]
    assert found.pop("samples") == without.pop("samples") + 15
    assert found == without
    assert list(found["metrics"]) == list(without["metrics"])
    assert answers[1][: len(answers[0])] == answers[0]
    assert [one["kind"] for one in answers[1][len(answers[0]) :]] == ["ground"] * 5


def test_the_protocol_asks_and_scores_the_same(new_arm: Callable[..., Arm]) -> None:
    tasks = with_locations(8, 20)
    arm = new_arm()
    arm.model.eval()
    figures = protocol_boxes(Subject(arm, tasks, tasks), Asking(samples=6))
    samples, true = box_requests(tasks, 6, seed=0)
    answers = answer_all(arm.model, samples, arm.tokenizer, arm.collate(tuple(tasks.tasks), left=True), 4)
    expected = grounding_scores(answers, true, tasks.split.world)
    for name, figure in figures.items():
        assert figure.value == pytest.approx(getattr(expected, name).mean())
        assert figure.low <= figure.value <= figure.high
    assert set(figures) == {"right", "iou", "well_formed"}
