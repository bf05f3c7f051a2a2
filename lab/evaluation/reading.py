"""Protocols of understanding: what an arm says about images, and about text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lab.evaluation.captioning import caption_figures
from lab.evaluation.few_shot import check_length, with_shots
from lab.evaluation.figures import Figure, macro_figure, mean_figure, share_figure
from lab.evaluation.grounding import box_requests, grounding_scores
from lab.evaluation.pope import NEGATIVES, polls, pope_figures, says_yes
from lab.evaluation.subject import Asking, Subject
from lab.evaluation.understanding import (
    Answer,
    answer_all,
    questions,
    questions_by_example,
    text_perplexity,
    things_right,
)
from lab.evaluation.vqa import vqa_accuracy
from lab.samples.segments import Sample
from lab.scenes.language import QUESTIONS, short_answer

PEOPLE = 10  # answers that VQA accuracy is made for; of a scene all ten say the same


def visual_questions(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """VQA accuracy of every kind of question, their mean, and exact match word for word.

    Ten people who all see the scene as it is give the same answer, so accuracy is 0 or 1 here; it differs
    from exact match by the normalisation alone.
    """
    asked = questions(subject.held_out, asking.samples, asking.seed)
    answers = _answers(subject, asking, asked)
    accuracy: dict[str, np.ndarray] = {}
    exact: dict[str, np.ndarray] = {}
    for kind in QUESTIONS:
        of_kind = [one for one in answers if one.kind == kind]
        if not of_kind:
            continue
        exact[kind] = np.array([one.right for one in of_kind], float)
        accuracy[kind] = np.array(
            [vqa_accuracy(short_answer(one.given), [short_answer(one.expected)] * PEOPLE) for one in of_kind]
        )
    figures = {"accuracy": macro_figure(accuracy), "exact": macro_figure(exact)}
    return figures | {f"accuracy/{kind}": share_figure(scores) for kind, scores in accuracy.items()}


def captions(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """CIDEr-D, BLEU-4 and ROUGE-L against the canonical caption, and what of the scene is right."""
    rows = range(min(asking.samples, len(subject.held_out)))
    asked = [subject.held_out.sample("caption", row, asking.seed) for row in rows]
    answers = _answers(subject, asking, asked)
    found = caption_figures([one.given for one in answers], [[one.expected] for one in answers])
    return found | {
        "scene": share_figure([float(one.right) for one in answers]),
        "things": share_figure([things_right(one) for one in answers]),
    }


def hallucination(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """POPE's figures for each kind of negatives."""
    figures: dict[str, Figure] = {}
    for negatives in NEGATIVES:
        training = subject.training.split.scenes
        asked = {
            poll.sample.id: poll
            for poll in polls(subject.held_out, training, negatives, asking.samples, asking.seed)
        }
        answers = _answers(subject, asking, [poll.sample for poll in asked.values()])
        answered = [asked[one.sample_id] for one in answers]
        found = pope_figures(
            [poll.row for poll in answered],
            [says_yes(one.given) for one in answers],
            [poll.there for poll in answered],
        )
        figures |= {f"{negatives}/{name}": figure for name, figure in found.items()}
    return figures


def boxes(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """Grounding: the box of a digit, right at an intersection over union of at least 0.5."""
    if not subject.held_out.split.world.locations:
        return {}
    asked, true = box_requests(subject.held_out, asking.samples, asking.seed)
    answers = _answers(subject, asking, asked)
    scores = grounding_scores(answers, true, subject.held_out.split.world)
    return {
        "right": share_figure(scores.right),
        "iou": mean_figure(scores.iou),
        "well_formed": share_figure(scores.well_formed),
    }


def by_example(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """In-context learning: whether an answer is what the examples before the question are.

    All prompts read the same, so an arm that sees everything and learns nothing from examples is right for
    one kind of answer out of three (task recognition, arXiv:2305.09731).
    """
    asked = questions_by_example(subject.held_out, asking.samples, asking.seed, asking.shots)
    check_length(subject.arm, asked, asking.shots)
    return {"right": share_figure([float(one.right) for one in _answered(subject, asked)])}


def plain_text(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """Perplexity of what has to be said in samples without images: does the language model still speak?"""
    rows = range(min(asking.samples, len(subject.held_out)))
    samples = [subject.held_out.sample("text", row, asking.seed) for row in rows]
    return {"perplexity": text_perplexity(subject.arm, samples, subject.batch_size)}


def _answers(subject: Subject, asking: Asking, asked: Sequence[Sample]) -> list[Answer]:
    """Answers to questions with their shots, in the order of the questions' ids."""
    prompts = [
        with_shots(sample, subject.training, asking.shots, asking.choice, asking.seed) for sample in asked
    ]
    check_length(subject.arm, prompts, asking.shots)
    return _answered(subject, prompts)


def _answered(subject: Subject, prompts: Sequence[Sample]) -> list[Answer]:
    """Answers to prompts as they are, in the order of their ids."""
    arm = subject.arm
    collate = arm.collate((*QUESTIONS, *subject.held_out.tasks), left=True)
    answers = answer_all(arm.model, prompts, arm.tokenizer, collate, subject.batch_size)
    return sorted(answers, key=lambda one: one.sample_id)
