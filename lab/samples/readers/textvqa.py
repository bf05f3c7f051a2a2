"""TextVQA: an object whose `data` are questions about text in images, with ten answers each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.samples.readers.fields import ImageFolder, bad, ending, field, image_names, placed, split_of
from lab.samples.readers.record import BadRecordError, Found, Record, Turn
from lab.samples.readers.streams import elements, keys_of
from lab.samples.readers.vqav2 import people_said

SUMMARY = "TextVQA: JSON whose `data` are questions with `image_id` and `answers`"


def recognises(root: Path, files: list[str]) -> bool:
    return any(_is_one(root / name) for name in ending(files, ".json"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)
    for name in ending(files, ".json"):
        if not _is_one(root / name):
            continue
        for place, element in placed(name, elements(root / name, "data")):
            try:
                value = element.value()
                number = field(value, "question_id", kind=(int, str))
                image = images.find(*image_names(str(field(value, "image_id", kind=(int, str)))))
                asked = field(value, "question")
                given = field(value, "answers", kind=list)
                people = people_said([field({"answers": one}, "answers") for one in given])
            except BadRecordError as error:
                yield bad(place, error, element.raw)
                continue
            turns = (Turn("user", (image, asked.strip())), Turn("assistant", people[:1]))
            tags = {"question_id": number, "image_id": value["image_id"]}
            yield place, Record(str(number), turns, people, split_of(name), tags), ""


def _is_one(file: Path) -> bool:
    if "data" not in keys_of(file):
        return False
    try:
        value = next(elements(file, "data")).value()
    except (StopIteration, BadRecordError):
        return False
    return isinstance(value, dict) and {"question", "image_id"} <= value.keys()
