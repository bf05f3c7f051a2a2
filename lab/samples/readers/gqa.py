"""GQA: an object whose members are questions, `{"02930152": {"question", "imageId", "answer", ...}, ...}`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.samples.readers.fields import ImageFolder, ending, field, image_names, read, said, split_of
from lab.samples.readers.record import Found, Place, Record, Turn
from lab.samples.readers.streams import Element, elements, first_object, starts_with

SUMMARY = "GQA: JSON whose members are questions with `imageId` and `answer`"


def recognises(root: Path, files: list[str]) -> bool:
    return any(_is_one(root / name) for name in ending(files, ".json"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)

    def record(place: Place, element: Element) -> Record:
        value = element.value()
        image = images.find(*image_names(field(value, "imageId")))
        asked, reply = field(value, "question"), said(field(value, "answer"), "answer")
        turns = (Turn("user", (image, asked.strip())), Turn("assistant", (reply,)))
        return Record(turns, (reply,), split_of(place.file), {"question_id": element.key})

    for name in ending(files, ".json"):
        if _is_one(root / name):
            yield from read(name, elements(root / name), record)


def _is_one(file: Path) -> bool:
    return starts_with(file) == "{" and {"question", "imageId"} <= first_object(elements(file)).keys()
