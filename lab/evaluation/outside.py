"""Protocols on data sets of one's own: an arm's answers to their questions, by the metrics of their papers.

| protocol | figures |
|---|---|
| vqa | accuracy against several people's answers (VQAv2, TextVQA), exact match with the most frequent one |
| exact | exact match after the normalisation of VQA (GQA, conversations) |
| pope | accuracy, precision, recall, F1 and the share of yes |
| caption | CIDEr-D, BLEU-4 and ROUGE-L against all captions of an image |
| box | boxes with an intersection over union of at least 0.5, mean of it, answers that are boxes |

In a conversation every answer is asked for, given the right ones before it. For intervals, images are drawn
again, each with all that was asked about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.errors import LabError, nearest
from lab.evaluation.captioning import caption_figures
from lab.evaluation.figures import Figure, share_by_group
from lab.evaluation.grounding import RIGHT, iou_of
from lab.evaluation.pope import pope_figures, says_yes
from lab.evaluation.understanding import answer_all
from lab.evaluation.vqa import exact_match, vqa_accuracy
from lab.models.arm import Arm
from lab.samples.datasets import DataSource, is_captioned
from lab.samples.index import Row
from lab.samples.readers.record import Box
from lab.samples.segments import Sample
from lab.scenes.locations import read_box

_NUMBERS = re.compile(r"\d*\.?\d+")


@dataclass(frozen=True)
class Reply:
    """What an arm answered to one question of a row.

    Attributes:
        row: the record.
        asked: the question, as the data set has it.
        given: what the arm said.
        expected: the right answer of this turn.
    """

    row: Row
    asked: str
    given: str
    expected: str


def protocol_of(source: DataSource) -> str:
    """The protocol that a data set is made for, as its format and its first row show.

    Raises:
        LabError: it asks for no text.
    """
    if source.data.params.format == "pope":
        return "pope"
    row = source.row(0)
    who, pieces = row.turns[-1]
    if who == "assistant" and any(isinstance(piece, Box) for piece in pieces):
        return "box"
    if is_captioned(row):
        return "caption"
    if who != "assistant" or not any(isinstance(piece, str) for piece in pieces):
        raise LabError(f"data set '{source.data.name}': it asks for no text, so there is nothing to score")
    return "vqa" if len(row.answers) > 1 else "exact"


def replies(arm: Arm, source: DataSource, rows: Sequence[int], batch_size: int) -> list[Reply]:
    """The arm's answers to all questions of some rows, in order.

    Args:
        arm: in eval mode.
        source: a split of a data set.
        rows: of it.
        batch_size: questions at once; it changes no answer.
    """
    collate = arm.collate((source.data.name,), left=True)
    found: list[Reply] = []
    for start in range(0, len(rows), batch_size):  # so that no more images than these are held
        asked: dict[str, tuple[Row, Sample]] = {}
        for row in rows[start : start + batch_size]:
            sample = source.sample(row, 0)
            for number, prompt in enumerate(_questions(sample)):
                name = f"{row}/{number}"
                asked[name] = source.row(row), Sample(name, sample.task, prompt)
        samples = [sample for _, sample in asked.values()]
        answers = answer_all(arm.model, samples, arm.tokenizer, collate, batch_size)
        said = {answer.sample_id: answer for answer in answers}
        found += [
            Reply(row, _question(sample), said[name].given, said[name].expected)
            for name, (row, sample) in asked.items()
        ]
    return found


def figures_of(protocol: str, given: Sequence[Reply], source: DataSource) -> dict[str, Figure]:
    """The figures of a protocol.

    Raises:
        LabError: there is no such protocol, or the rows are not made for it.
    """
    if protocol not in PROTOCOLS:
        raise LabError(f"no protocol '{protocol}' for data sets{nearest(protocol, PROTOCOLS)}")
    return PROTOCOLS[protocol](given, source)


def _question(sample: Sample) -> str:
    """What was asked last."""
    asked: list[str] = []
    for segment in sample.segments[:-1]:
        if segment.supervised:
            asked = []
        elif segment.role == "user" and segment.text:
            asked.append(segment.text)
    return " ".join(asked)


def _questions(sample: Sample) -> Iterator[tuple[Any, ...]]:
    """The segments up to each answer in turn, with it."""
    for place, segment in enumerate(sample.segments):
        if segment.supervised and segment.text is not None:
            yield sample.segments[: place + 1]


def _vqa(given: Sequence[Reply], source: DataSource) -> dict[str, Figure]:
    alone = [reply for reply in given if len(reply.row.answers) < 2]
    if alone:
        raise LabError(
            f"protocol vqa: {alone[0].row.place} of '{source.data.name}' has an answer of one person; it "
            "takes several, `--protocol exact` takes one"
        )
    people = [vqa_accuracy(reply.given, reply.row.answers) for reply in given]
    return {"accuracy": _share(people, given), **_exact(given, source)}


def _exact(given: Sequence[Reply], source: DataSource) -> dict[str, Figure]:
    return {"exact": _share([exact_match(reply.given, reply.expected) for reply in given], given)}


def _pope(given: Sequence[Reply], source: DataSource) -> dict[str, Figure]:
    unclear = [reply for reply in given if reply.expected.lower().rstrip(".") not in ("yes", "no")]
    if unclear:
        raise LabError(
            f"protocol pope: {unclear[0].row.place} of '{source.data.name}' is answered by "
            f"'{unclear[0].expected}'; it takes yes or no"
        )
    files = list(dict.fromkeys(reply.row.place.file for reply in given))
    found: dict[str, Figure] = {}
    for file in files:
        own = [reply for reply in given if reply.row.place.file == file]
        images: dict[str, int] = {}
        rows = [images.setdefault(_image(reply), len(images)) for reply in own]
        truth = [reply.expected.lower().startswith("yes") for reply in own]
        figures = pope_figures(rows, [says_yes(reply.given) for reply in own], truth)
        prefix = f"{file.rpartition('/')[2].partition('.')[0]}/" if len(files) > 1 else ""
        found |= {f"{prefix}{name}": figure for name, figure in figures.items()}
    return found


def _caption(given: Sequence[Reply], source: DataSource) -> dict[str, Figure]:
    references = [reply.row.answers or (reply.expected,) for reply in given]
    return caption_figures([reply.given for reply in given], references)


def _box(given: Sequence[Reply], source: DataSource) -> dict[str, Figure]:
    world, scores, formed = source.world, [], []
    for reply in given:
        (true,) = [piece for _, pieces in reply.row.turns for piece in pieces if isinstance(piece, Box)]
        shot = reply.row.shots[0]
        placed = source.fitting.place(true.corners, shot.width, shot.height).astype(float)
        box = read_box(world, reply.given) if world.locations else _numbers(reply.given, world.image_size)
        formed.append(float(box is not None))
        scores.append(0.0 if box is None else iou_of(box, placed))
    return {
        "right": _share([float(score >= RIGHT) for score in scores], given),
        "iou": _share(scores, given),
        "well_formed": _share(formed, given),
    }


def _numbers(text: str, size: int) -> np.ndarray | None:
    """A box (4,), px, in numbers between 0 and 1; None unless they enclose something."""
    found = np.array([float(number) for number in _NUMBERS.findall(text)])
    if len(found) != 4 or found.max() > 1 or found[0] >= found[2] or found[1] >= found[3]:
        return None
    return found * size


def _share(scores: Sequence[float], given: Sequence[Reply]) -> Figure:
    """A mean over replies; those about one image are not independent, nor are those of one conversation."""
    return share_by_group(scores, [_image(reply) or reply.row.place for reply in given])


def _image(reply: Reply) -> str:
    shots = reply.row.shots
    return shots[0].digest if shots else ""


PROTOCOLS: Mapping[str, Callable[[Sequence[Reply], DataSource], dict[str, Figure]]] = {
    "vqa": _vqa,
    "exact": _exact,
    "pope": _pope,
    "caption": _caption,
    "box": _box,
}
