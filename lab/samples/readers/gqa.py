"""GQA: an object whose members are questions, `{"02930152": {"question", "imageId", "answer", ...}, ...}`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.samples.readers.fields import ImageFolder, bad, ending, field, image_names, placed, said, split_of
from lab.samples.readers.record import BadRecordError, Found, Record, Turn
from lab.samples.readers.streams import elements, starts_with

SUMMARY = "GQA: JSON whose members are questions with `imageId` and `answer`"


def recognises(root: Path, files: list[str]) -> bool:
    return any(_is_one(root / name) for name in ending(files, ".json"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)
    for name in ending(files, ".json"):
        if not _is_one(root / name):
            continue
        for place, element in placed(name, elements(root / name)):
            try:
                value = element.value()
                image = images.find(*image_names(field(value, "imageId")))
                asked, reply = field(value, "question"), said(field(value, "answer"), "answer")
            except BadRecordError as error:
                yield bad(place, error, element.raw)
                continue
            turns = (Turn("user", (image, asked.strip())), Turn("assistant", (reply,)))
            tags = {"question_id": element.key}
            yield place, Record(element.key, turns, (reply,), split_of(name), tags), ""


def _is_one(file: Path) -> bool:
    if starts_with(file) != "{":
        return False
    try:
        value = next(elements(file)).value()
    except (StopIteration, BadRecordError):
        return False
    return isinstance(value, dict) and {"question", "imageId"} <= value.keys()
