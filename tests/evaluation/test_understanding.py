"""Questions, answers and what they count: by hand where a hand suffices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lab.evaluation.losses import validation_losses
from lab.evaluation.understanding import (
    Answer,
    answer_all,
    majority_share,
    prompt_of,
    questions,
    text_accuracy,
    text_perplexity,
    things_right,
)
from lab.models.arm import Arm
from lab.samples.segments import EOS
from lab.scenes.digits import load_patches, split_instances
from lab.scenes.language import QUESTIONS, with_evidence
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import World, WorldSplit, compose


@pytest.fixture
def arm(new_arm: Callable[..., Arm]) -> Arm:
    made = new_arm(text_decoder={"name": "llama", "dim": 64, "depth": 2, "num_heads": 2})
    made.model.eval()
    return made


def said(expected: str, given: str) -> Answer:
    return Answer("id", "kind", "asked", expected, given)


def test_what_is_right_is_the_answer_not_its_evidence() -> None:
    assert said("red", "red").right
    assert not said("red", "blue").right
    assert said(with_evidence("top-left red 3", "3"), with_evidence("top-left blue 3", "3")).right
    assert said(with_evidence("top-left red 3", "3"), "3").right
    assert not said(with_evidence("top-left red 3", "3"), with_evidence("top-left red 3", "5")).right
    assert not said("3", "").right


def test_majority_share_by_hand() -> None:
    answers = [said(word, "") for word in ("yes", "yes", "no", with_evidence("3 nowhere", "yes"), "no")]
    assert majority_share(answers) == pytest.approx(3 / 5)
    assert majority_share([said("5", "")]) == 1


def test_things_right_by_hand() -> None:
    caption = "top-left red 3 , top-right blue 4"
    assert things_right(said(caption, caption)) == 1
    assert things_right(said(caption, "top-right blue 4 , top-left red 3")) == 1
    assert things_right(said(caption, "top-left red 3 , top-right blue 5")) == 0.5
    assert things_right(said(caption, "top-left red 3 , top-left red 3 , top-left red 3")) == 0.5
    assert things_right(said(caption, "")) == 0


def test_questions_are_the_same_every_time_and_as_many_of_each_kind(held_out: SceneTasks) -> None:
    one, two = (questions(held_out, 20, seed=3) for _ in range(2))
    assert [sample.id for sample in one] == [sample.id for sample in two]
    assert [[part.text for part in sample.segments] for sample in one] == [
        [part.text for part in sample.segments] for sample in two
    ]
    assert Counter(sample.task for sample in one) == dict.fromkeys(QUESTIONS, 20)
    assert len({sample.id for sample in one}) == len(one)  # each about a scene of its own
    other = questions(held_out, 20, seed=4)
    assert [sample.segments[-2].text for sample in other] != [sample.segments[-2].text for sample in one]


def test_a_prompt_ends_where_the_model_has_to_speak(held_out: SceneTasks) -> None:
    for task in held_out.tasks:
        sample = held_out.sample(task, 3, 0)
        prompt = prompt_of(sample)
        assert not any(segment.supervised for segment in prompt.segments)
        assert sample.segments[len(prompt.segments)].supervised
        assert prompt.id == sample.id


def test_batch_size_and_order_change_no_answer(arm: Arm, held_out: SceneTasks) -> None:
    """The model gives varied answers: it is random, and so wide that ties play no part."""
    asked = questions(held_out, 6, seed=0)
    collate = arm.collate((*QUESTIONS, *held_out.tasks), left=True)
    found = []
    for order, size in ((asked, 64), (asked, 7), (asked[::-1], 16), (asked, 1)):
        answers = answer_all(arm.model, order, arm.tokenizer, collate, size)
        found.append({answer.sample_id: answer for answer in answers})
        assert len(found[-1]) == len(asked)
    assert found[0] == found[1] == found[2] == found[3]
    assert len({answer.given for answer in found[0].values()}) > 3
    for sample in asked:
        answer = found[0][sample.id]
        assert answer.kind == sample.task
        assert answer.expected == (sample.segments[-1].text or "").removesuffix(f" {EOS}")
        assert answer.question in (sample.segments[-2].text or "")


def test_perplexity_is_the_exponent_of_the_mean_over_all_words(arm: Arm, held_out: SceneTasks) -> None:
    samples = [held_out.sample("text", row, 0) for row in range(5)]
    collate = arm.collate(tuple(held_out.tasks))
    total, count = 0.0, 0
    with torch.no_grad():
        for sample in samples:  # one at a time
            batch = collate([sample])
            logits = arm.model.text_decoder.logits(arm.model.states(batch, None))[0]
            places = batch.supervised[0].nonzero().flatten()
            total += float(F.cross_entropy(logits[places - 1], batch.ids[0, places], reduction="sum"))
            count += len(places)
    for size in (1, 2, 5):
        figure = text_perplexity(arm, samples, size)
        assert figure.value == pytest.approx(math.exp(total / count), rel=1e-5)
        assert figure.low < figure.value < figure.high


def test_validation_losses_are_those_of_held_out_samples(arm: Arm, held_out: SceneTasks) -> None:
    collate = arm.collate(tuple(held_out.tasks))
    mix = {"vqa": 1.0, "text_to_image": 1.0}
    found = [validation_losses(arm.model, held_out.sources(), collate, mix, 0) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].keys() == {
        "validation/loss",
        "validation/loss_vqa",
        "validation/loss_text_to_image",
        "validation/loss_text_to_image_image",
    }
    assert all(math.isfinite(value) for value in found[0].values())
    whole = validation_losses(arm.model, held_out.sources(), collate, mix, 0, batch_size=128)
    assert whole == pytest.approx(found[0], rel=1e-5)


class Oracle(torch.nn.Module):
    """A language model that knows what comes: the next word is written in the ids that it is given."""

    def __init__(self, vocabulary: int, right: Iterator[bool]) -> None:
        super().__init__()
        self.vocabulary, self.right = vocabulary, right

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        self.ids = ids
        return torch.zeros(*ids.shape, 1)

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        coming = self.ids.roll(-1, dims=1).clone()
        for row in range(len(coming)):
            if not next(self.right):
                coming[row] = (coming[row] + 1) % self.vocabulary
        return coming.unsqueeze(-1)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return F.one_hot(states[..., 0], self.vocabulary).float()


def test_text_accuracy_counts_wholly_right_answers(held_out: SceneTasks, arm: Arm) -> None:
    pattern = np.array([True, True, True, False])
    right = iter(np.tile(pattern, 1000).tolist())
    scores = text_accuracy(Oracle(len(arm.tokenizer), right), held_out, arm.tokenizer, 40)
    assert scores.pop("text/average") == pytest.approx(0.75)
    assert scores == pytest.approx({f"text/{kind}": 0.75 for kind in QUESTIONS})


def test_text_accuracy_asks_what_can_be_asked(arm: Arm) -> None:
    world = World(max_digits=1, variants=1)
    digits = load_patches(split_instances(0)["test"], 1, 0)
    tasks = SceneTasks(WorldSplit(world, digits, compose(world, digits, 10, 0)))
    scores = text_accuracy(arm.model.text_decoder, tasks, arm.tokenizer, 5)
    assert set(scores) == {
        "text/average",
        *(f"text/{kind}" for kind in QUESTIONS if kind not in ("compare", "add")),
    }
