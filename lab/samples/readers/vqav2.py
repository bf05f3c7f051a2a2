"""VQAv2: questions in one file, ten answers to each in another; joined by `question_id`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.samples.readers.fields import (
    ImageFolder,
    Join,
    bad,
    ending,
    field,
    image_names,
    placed,
    split_of,
)
from lab.samples.readers.record import BadRecordError, Found, Record, Turn
from lab.samples.readers.streams import elements, keys_of

SUMMARY = "VQAv2: JSON with `questions`, and JSON with `annotations` that have `answers`"


def recognises(root: Path, files: list[str]) -> bool:
    found = ending(files, ".json")
    return bool(
        _with(root, found, "questions", "question_id") and _with(root, found, "annotations", "answers")
    )


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images, answers = ImageFolder(root), Join()
    found = ending(files, ".json")
    for name in _with(root, found, "annotations", "answers"):
        for place, element in placed(name, elements(root / name, "annotations")):
            try:
                value = element.value()
                given = [field(one, "answer") for one in field(value, "answers", kind=list)]
                answers.add(field(value, "question_id", kind=(int, str)), given)
            except BadRecordError as error:
                yield bad(place, error, element.raw)
    answers.ready()
    for name in _with(root, found, "questions", "question_id"):
        part = re.search(r"(train|val|test)\d{4}", name)
        for place, element in placed(name, elements(root / name, "questions")):
            try:
                value = element.value()
                asked, number = field(value, "question"), field(value, "question_id", kind=(int, str))
                image = images.find(*_names(field(value, "image_id", kind=(int, str)), part and part[0]))
                given = next(iter(answers.all(number)), [])
                people = people_said(given)
            except BadRecordError as error:
                yield bad(place, error, element.raw)
                continue
            turns = (Turn("user", (image, asked.strip())), Turn("assistant", people[:1]))
            tags = {"question_id": number, "image_id": value["image_id"]}
            yield place, Record(str(number), turns, people, split_of(name), tags), ""
    answers.close()


def people_said(given: Sequence[str]) -> tuple[str, ...]:
    """Answers of people, the most frequent first; of equally frequent ones that which was given first.

    Raises:
        BadRecordError: nobody said a word.
    """
    spoken = [one.strip() for one in given if one.strip()]
    if not spoken:
        raise BadRecordError("empty_answer", "nobody answered")
    most = Counter(spoken).most_common(1)[0][0]
    spoken.remove(most)
    return (most, *spoken)


def _names(image: Any, part: str | None) -> list[str]:
    stem = f"{image:012d}" if isinstance(image, int) else str(image)
    stems = [*([f"COCO_{part}_{stem}"] if part else []), stem, str(image)]
    return [name for one in dict.fromkeys(stems) for name in image_names(one)]


def _with(root: Path, files: list[str], key: str, inner: str) -> list[str]:
    """The files whose object has an array of objects with a key."""
    found = []
    for name in files:
        if key in keys_of(root / name):
            try:
                value = next(elements(root / name, key)).value()
            except (StopIteration, BadRecordError):
                continue
            if isinstance(value, dict) and inner in value:
                found.append(name)
    return found
