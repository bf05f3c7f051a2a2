"""POPE: a question a line.

{"question_id": 1, "image": "x.jpg", "text": "Is there a dog in the image?", "label": "no"}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.samples.readers.fields import ImageFolder, ending, field, read, said, split_of
from lab.samples.readers.record import BadRecordError, Found, Place, Record, Turn
from lab.samples.readers.streams import Element, first_record, objects

SUMMARY = "POPE: JSON Lines with `image`, `text` and `label`, yes or no"


def recognises(root: Path, files: list[str]) -> bool:
    return any(_is_one(root / name) for name in ending(files, ".json", ".jsonl"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)

    def record(place: Place, element: Element) -> Record:
        value = element.value()
        image, asked = images.find(field(value, "image")), field(value, "text")
        reply = said(field(value, "label"), "label").lower()
        if reply not in ("yes", "no"):
            raise BadRecordError("missing_field", f"'label': expected yes or no, not '{reply}'")
        turns = (Turn("user", (image, asked.strip())), Turn("assistant", (reply,)))
        tags = {"question_id": value.get("question_id", place.record), "file": place.file}
        return Record(turns, (reply,), split_of(place.file), tags)

    for name in ending(files, ".json", ".jsonl"):
        if _is_one(root / name):
            yield from read(name, objects(root / name), record)


def _is_one(file: Path) -> bool:
    return {"image", "text", "label"} <= first_record(file).keys()
