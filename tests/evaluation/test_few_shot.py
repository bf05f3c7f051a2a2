"""Few-shot prompts: the right examples, the same every time, through the assembler of all samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lab.errors import LabError
from lab.evaluation.few_shot import CHOICES, check_length, with_shots
from lab.evaluation.reading import by_example, captions, visual_questions
from lab.evaluation.subject import Asking, Subject
from lab.evaluation.understanding import Answer
from lab.models.arm import Arm
from lab.samples.segments import BOS, EOS, Sample
from lab.scenes.language import QUESTIONS
from lab.scenes.tasks import SceneTasks


@pytest.fixture
def query(held_out: SceneTasks) -> Sample:
    found = held_out.question("digit_at", 3, 0)
    assert found is not None
    return found


def texts(sample: Sample) -> list[str]:
    return [segment.text or "<image>" for segment in sample.segments]


def test_a_prompt_is_solved_examples_then_the_question(query: Sample, tasks: SceneTasks) -> None:
    prompt = with_shots(query, tasks, 2, "matched", seed=0)
    assert [text == "<image>" for text in texts(prompt)] == [False] + [True, False, False] * 3
    assert texts(prompt)[0] == BOS
    assert texts(prompt)[-3:] == texts(query)[-3:]
    assert [segment.supervised for segment in prompt.segments] == [False] * 9 + [True]
    assert all(prompt.segments[place].role == "assistant" and prompt.segments[place].ends for place in (3, 6))
    assert (prompt.id, prompt.task) == (query.id, query.task)
    assert with_shots(query, tasks, 0, "random", seed=0) == query


@pytest.mark.parametrize("choice", CHOICES)
def test_shots_are_nested_and_follow_from_the_query_alone(
    query: Sample, tasks: SceneTasks, choice: str
) -> None:
    prompts = {k: texts(with_shots(query, tasks, k, choice, seed=0)) for k in (1, 2, 4, 8)}  # type: ignore[arg-type]
    for few, many in ((1, 2), (2, 4), (4, 8)):
        assert prompts[many][-len(prompts[few]) + 1 :] == prompts[few][1:]
    again = texts(with_shots(replace(query), tasks, 8, choice, seed=0))  # type: ignore[arg-type]
    assert again == prompts[8]
    assert texts(with_shots(query, tasks, 8, choice, seed=1)) != prompts[8]  # type: ignore[arg-type]
    assert texts(with_shots(replace(query, id="other"), tasks, 8, choice, seed=0)) != prompts[8]  # type: ignore[arg-type]


def test_matched_shots_ask_the_same_kind(held_out: SceneTasks, tasks: SceneTasks) -> None:
    def kinds(choice: str) -> list[bool]:
        asked = [held_out.question("count", row, 0) for row in range(20)]
        prompts = [with_shots(one, tasks, 4, choice, 0) for one in asked if one is not None]  # type: ignore[arg-type]
        shots = [text for prompt in prompts for text in texts(prompt)[2:-3:3]]
        return ["how many digits" in text or "number of digits" in text for text in shots]

    assert all(kinds("matched"))
    assert 0 < np.mean(kinds("random")) < 0.4  # an eighth, of eighty


def test_shots_of_a_caption_are_captions_of_training_scenes(held_out: SceneTasks, tasks: SceneTasks) -> None:
    prompt = with_shots(held_out.sample("caption", 0, 0), tasks, 3, "random", 0)
    pixels = [segment.pixels for segment in prompt.segments if segment.pixels is not None]
    assert len(pixels) == 4
    training = tasks.split.pixels(np.arange(len(tasks)))
    for shot in pixels[:-1]:
        assert (training == shot).all(axis=(1, 2, 3)).any()
    assert all("left" in text or "right" in text for text in texts(prompt)[3::3])


@pytest.fixture
def subject(new_arm: Callable[..., Arm], held_out: SceneTasks, tasks: SceneTasks) -> Subject:
    arm = new_arm()
    arm.model.eval()
    return Subject(arm, held_out, tasks)


@pytest.mark.parametrize("fusion", ["sequence", "cross_attention"])
def test_figures_do_not_depend_on_the_batch(
    new_arm: Callable[..., Arm], held_out: SceneTasks, tasks: SceneTasks, fusion: str
) -> None:
    arm = new_arm(fusion={"name": fusion})
    arm.model.eval()
    asking = Asking(samples=6, shots=2, choice="matched")
    one, two = (Subject(arm, held_out, tasks, batch_size=size) for size in (50, 7))
    for measure in (visual_questions, captions, by_example):
        assert measure(one, asking) == measure(two, asking)


def test_untrained_arms_are_near_nothing_and_every_figure_has_its_interval(subject: Subject) -> None:
    figures = visual_questions(subject, Asking(samples=5))
    assert set(figures) == {"accuracy", "exact", *(f"accuracy/{kind}" for kind in QUESTIONS)}
    for figure in figures.values():
        assert 0 <= figure.low <= figure.value <= figure.high <= 1
    assert figures["accuracy"].samples == 5 * len(QUESTIONS)


def test_whoever_learns_nothing_from_examples_is_right_for_a_third(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees all there is and always tells the colour."""
    images = []

    def colours(model: object, asked: list[Sample], *rest: object) -> list[Answer]:
        images.extend(sum(segment.picture is not None for segment in one.segments) for one in asked)
        replies = [one.segments[-1].text or "" for one in asked]
        return [
            Answer(one.id, one.task, "", reply, f"{reply.rpartition(' ')[0]} {reply.split()[1]}")
            for one, reply in zip(asked, replies, strict=True)
        ]

    monkeypatch.setattr("lab.evaluation.reading.answer_all", colours)
    figure = by_example(subject, Asking(samples=60, shots=2))["right"]
    assert figure.low < 1 / 3 < figure.high
    assert images == [3] * 60


def test_a_prompt_that_does_not_fit_is_refused(
    new_arm: Callable[..., Arm], query: Sample, tasks: SceneTasks
) -> None:
    decoder = {"name": "llama", "dim": 32, "depth": 2, "num_heads": 2, "max_positions": 150}
    arm = new_arm(text_decoder=decoder)
    check_length(arm, [with_shots(query, tasks, 1, "random", 0)], 1)
    prompt = with_shots(query, tasks, 8, "random", 0)
    with pytest.raises(
        LabError, match=r"shots 8: the longest prompt takes \d+ positions .* has 150; ask for"
    ):
        check_length(arm, [prompt], 8)
    taken = int(
        arm.collate((query.task,))([prompt]).mask.sum()
    )  # with the answer, which the message leaves out
    with pytest.raises(
        LabError, match=str(taken - len(arm.tokenizer.encode(f"{prompt.segments[-1].text} {EOS}")))
    ):
        check_length(arm, [prompt], 8)
