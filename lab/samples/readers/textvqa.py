"""TextVQA: an object whose `data` are questions about text in images, with ten answers each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.samples.readers.fields import ImageFolder, ending, field, image_names, read
from lab.samples.readers.record import Found, Place, Record
from lab.samples.readers.streams import Element, elements, first_object
from lab.samples.readers.vqav2 import answered

SUMMARY = "TextVQA: JSON whose `data` are questions with `image_id` and `answers`"


def recognises(root: Path, files: list[str]) -> bool:
    return any(_is_one(root / name) for name in ending(files, ".json"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)

    def record(place: Place, element: Element) -> Record:
        value = element.value()
        image = images.find(*image_names(str(field(value, "image_id", kind=(int, str)))))
        given = [field({"answers": one}, "answers") for one in field(value, "answers", kind=list)]
        return answered(value, image, given, place.file)

    for name in ending(files, ".json"):
        if _is_one(root / name):
            yield from read(name, elements(root / name, "data"), record)


def _is_one(file: Path) -> bool:
    return {"question", "image_id"} <= first_object(elements(file, "data")).keys()
