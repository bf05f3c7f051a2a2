"""VQAv2: questions in one file, ten answers to each in another; joined by `question_id`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.samples.readers.fields import ImageFolder, Join, ending, field, image_names, read, split_of
from lab.samples.readers.record import BadRecordError, Found, Piece, Place, Record, Turn
from lab.samples.readers.streams import Element, elements, first_object

SUMMARY = "VQAv2: JSON with `questions`, and JSON with `annotations` that have `answers`"


def recognises(root: Path, files: list[str]) -> bool:
    found = ending(files, ".json")
    return bool(
        _with(root, found, "questions", "question_id") and _with(root, found, "annotations", "answers")
    )


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images, answers = ImageFolder(root), Join()
    found = ending(files, ".json")

    def keep(place: Place, element: Element) -> None:
        value = element.value()
        given = [field(one, "answer") for one in field(value, "answers", kind=list)]
        answers.add(field(value, "question_id", kind=(int, str)), given)

    def record(place: Place, element: Element) -> Record:
        value = element.value()
        part = re.search(r"(train|val|test)\d{4}", place.file)
        image = images.find(*_names(field(value, "image_id", kind=(int, str)), part and part[0]))
        given: list[str] = next(iter(answers.all(field(value, "question_id", kind=(int, str)))), [])
        return answered(value, image, given, place.file)

    for name in _with(root, found, "annotations", "answers"):
        yield from read(name, elements(root / name, "annotations"), keep)
    answers.ready()
    for name in _with(root, found, "questions", "question_id"):
        yield from read(name, elements(root / name, "questions"), record)
    answers.close()


def answered(value: Any, image: Piece, given: Sequence[str], file: str) -> Record:
    """The record of a question about an image that people answered.

    Args:
        value: with `question`, `question_id` and `image_id`.
        image: that it is about.
        given: what each of them said.
        file: in which it stands.

    Raises:
        BadRecordError: a field is missing, or nobody said a word.
    """
    asked, number = field(value, "question"), field(value, "question_id", kind=(int, str))
    people = people_said(given)
    turns = (Turn("user", (image, asked.strip())), Turn("assistant", people[:1]))
    return Record(turns, people, split_of(file), {"question_id": number, "image_id": value["image_id"]})


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
    return [name for name in files if inner in first_object(elements(root / name, key))]
