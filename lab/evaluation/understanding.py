"""Understanding of scenes: questions of every kind, captions, and whether the language model still speaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from components.contracts import TextDecoder
from lab.evaluation.figures import Figure, sums_figure
from lab.models.arm import Arm
from lab.models.generation import generate_text
from lab.models.rows import positions_of
from lab.models.unified import UnifiedModel
from lab.samples.batch import Collate
from lab.samples.segments import EOS, Sample
from lab.samples.tokenizer import Tokenizer
from lab.scenes.language import QUESTIONS, short_answer
from lab.scenes.tasks import SceneTasks


@dataclass(frozen=True)
class Answer:
    """One question and what the model answered."""

    sample_id: str
    kind: str
    question: str
    expected: str
    given: str

    @property
    def right(self) -> bool:
        """Whether the answer proper is right, whatever evidence was given for it."""
        return short_answer(self.given) == short_answer(self.expected)


def prompt_of(sample: Sample) -> Sample:
    """The sample up to where the model has to speak."""
    first = next(index for index, segment in enumerate(sample.segments) if segment.supervised)
    return Sample(sample.id, sample.task, sample.segments[:first])


def answer_all(
    model: UnifiedModel, samples: Sequence[Sample], tokenizer: Tokenizer, collate: Collate, batch_size: int
) -> list[Answer]:
    """Greedy answers, generated with a cache.

    Args:
        model: in eval mode.
        samples: whose last segment is the expected answer.
        tokenizer: of the text decoder.
        collate: with left padding.
        batch_size: rows generated at once; it changes no answer.
    """
    answers = []
    ordered = sorted(
        samples, key=lambda sample: sum(len(segment.text or "") for segment in sample.segments[:-1])
    )
    for chunk in _chunks(ordered, batch_size):
        batch = collate([prompt_of(sample) for sample in chunk])
        generated = generate_text(model, batch.to(next(model.parameters()).device), tokenizer[EOS])
        for sample, ids in zip(chunk, generated, strict=True):
            expected, asked = (sample.segments[-1].text or "").strip(), sample.segments[-2].text or ""
            answers.append(Answer(sample.id, sample.task, asked, expected, tokenizer.decode(ids)))
    return answers


def questions(tasks: SceneTasks, number: int, seed: int) -> list[Sample]:
    """`number` questions of every kind, each about a scene of its own."""
    found = []
    for order, kind in enumerate(QUESTIONS):
        samples = (tasks.question(kind, row, seed + order) for row in range(len(tasks)))
        found += [sample for sample, _ in zip(filter(None, samples), range(number), strict=False)]
    return found


def questions_by_example(tasks: SceneTasks, number: int, seed: int, shots: int) -> list[Sample]:
    """`number` questions that `shots` examples each tell, every one about a scene of its own."""
    return [tasks.question_by_example(row, seed, shots) for row in range(min(number, len(tasks)))]


def majority_share(answers: Iterable[Answer]) -> float:
    """What one would score by always giving the most frequent right answer: the chance level."""
    counts = Counter(short_answer(answer.expected) for answer in answers)
    return max(counts.values()) / counts.total()


def things_right(answer: Answer) -> float:
    """Share of the caption's things (colour, digit, place) that the answer names."""
    expected = {part.strip() for part in answer.expected.split(",")}
    given = {part.strip() for part in answer.given.split(",")}
    return len(expected & given) / len(expected)


def text_perplexity(arm: Arm, samples: Sequence[Sample], batch_size: int) -> Figure:
    """Perplexity of supervised elements of plain-text samples; its interval draws samples, each whole.

    Args:
        arm: in eval mode.
        samples: of the text task.
        batch_size: rows at once.
    """
    losses = sample_losses(arm, samples, batch_size)
    return sums_figure(losses, lambda sums: np.exp(sums[:, 0] / sums[:, 1]))


@torch.no_grad()
def sample_losses(arm: Arm, samples: Sequence[Sample], batch_size: int) -> np.ndarray:
    """Summed cross-entropy (nats) of each sample's supervised text, and its elements: (n, 2)."""
    device = next(arm.model.parameters()).device
    found = []
    for chunk in _chunks(list(samples), batch_size):
        # the model sums losses by task: a task for each sample gives each its own
        named = [replace(sample, task=sample.id) for sample in chunk]
        collate = arm.collate(tuple(sample.id for sample in named))
        losses = arm.model(collate(named).to(device))
        found.append(torch.stack([losses.text_sum, losses.text_count], dim=1).cpu().double().numpy())
    return np.concatenate(found)


def _chunks(samples: Sequence[Sample], size: int) -> Iterable[Sequence[Sample]]:
    return (samples[start : start + size] for start in range(0, len(samples), size))


@torch.no_grad()
def text_accuracy(
    model: TextDecoder, tasks: SceneTasks, tokenizer: Tokenizer, count: int
) -> dict[str, float]:
    """What a language model answers to questions about *described* held-out scenes.

    Args:
        model: a text decoder in eval mode.
        tasks: of a held-out split.
        tokenizer: of the text decoder.
        count: questions of each kind.

    Returns:
        `text/<kind>` and their mean `text/average`: the share of questions whose every answer element ranks
        first when the right ones precede it.
    """
    collate = Collate(tokenizer, 0, 0, tuple(QUESTIONS))
    found: dict[str, float] = {}
    for kind in QUESTIONS:
        described = (tasks.text_question(kind, row, seed=11) for row in range(len(tasks)))
        samples = [sample for sample, _ in zip(filter(None, described), range(count), strict=False)]
        if not samples:  # scenes of one digit admit no question about two
            continue
        batch = collate(samples)
        states = model(model.embed(batch.ids), batch.mask, positions_of(batch.mask))
        right = model.logits(states[:, :-1]).argmax(dim=-1) == batch.ids[:, 1:]  # (B, T - 1)
        found[f"text/{kind}"] = float((right | ~batch.supervised[:, 1:]).all(dim=1).float().mean())
    return {"text/average": float(np.mean(list(found.values()))), **found}
