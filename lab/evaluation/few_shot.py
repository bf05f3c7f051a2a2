"""In-context learning: solved examples before the question, in one interleaved prompt.

Paper: Flamingo, arXiv:2204.14198, section 3.3 and appendix A.2. A prompt is a sample like any other:

    [image][question][answer] ... [image][question] -> [answer*]

with the shots' answers given, so that the assembler lays it out as it does every sample.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from lab.errors import LabError
from lab.evaluation.understanding import prompt_of
from lab.models.arm import Arm
from lab.samples.segments import Sample
from lab.scenes.language import QUESTIONS
from lab.scenes.tasks import SceneTasks

Choice = Literal["random", "matched"]
CHOICES: tuple[Choice, ...] = ("random", "matched")
LONGEST_ANSWER = 48  # elements, as `generate_text` cuts answers


def with_shots(query: Sample, support: SceneTasks, shots: int, choice: Choice, seed: int) -> Sample:
    """The query with solved examples before it.

    Which examples a query gets follows from its id, the seed and the choice alone: not from other queries,
    their order or number. The example next to the query is the same for every number of shots above 0, and
    so on outwards, so that numbers of shots are compared on nested prompts.

    Args:
        query: a question about a scene (`SceneTasks.question`), or a sample of the caption task.
        support: tasks of the training split, whose scenes no query shows.
        shots: k, how many examples.
        choice: "random" takes questions of any kind, "matched" of the query's own kind. Shots of a caption
            are captions either way.
        seed: of the examples.
    """
    rng = np.random.default_rng([seed, zlib.crc32(query.id.encode()), CHOICES.index(choice)])
    examples: list[Sample] = []
    while len(examples) < shots:
        row, kind = int(rng.integers(len(support))), query.task
        if query.task in QUESTIONS and choice == "random":
            kind = list(QUESTIONS)[int(rng.integers(len(QUESTIONS)))]
        phrasing = int(rng.integers(2**31))
        example = (
            support.question(kind, row, phrasing)
            if kind in QUESTIONS
            else support.sample(kind, row, phrasing)
        )
        if example is not None:  # scenes of one digit admit no question about two
            examples.append(example)
    begin, *own = query.segments
    solved = [
        replace(segment, supervised=False)
        for example in reversed(examples)
        for segment in example.segments[1:]
    ]
    return Sample(query.id, query.task, (begin, *solved, *own))


def check_length(arm: Arm, samples: Sequence[Sample], shots: int) -> None:
    """Raises LabError where a prompt and its answer do not fit the language model's positions."""
    limit = arm.longest
    if limit is None or not samples:
        return
    collate = arm.collate(tuple({sample.task for sample in samples}))
    longest = max(collate.length(prompt_of(sample)) for sample in samples)
    if longest + LONGEST_ANSWER > limit:
        raise LabError(
            f"shots {shots}: the longest prompt takes {longest} positions and an answer up to "
            f"{LONGEST_ANSWER}, but the language model has {limit}; ask for fewer shots"
        )
