"""POPE: a question a line.

{"question_id": 1, "image": "x.jpg", "text": "Is there a dog in the image?", "label": "no"}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.samples.readers.fields import ImageFolder, bad, ending, field, placed, said, split_of
from lab.samples.readers.record import BadRecordError, Found, Record, Turn
from lab.samples.readers.streams import first_value, objects

SUMMARY = "POPE: JSON Lines with `image`, `text` and `label`, yes or no"


def recognises(root: Path, files: list[str]) -> bool:
    return any(_is_one(root / name) for name in ending(files, ".json", ".jsonl"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)
    for name in ending(files, ".json", ".jsonl"):
        if not _is_one(root / name):
            continue
        for place, element in placed(name, objects(root / name)):
            try:
                value = element.value()
                image, asked = images.find(field(value, "image")), field(value, "text")
                reply = said(field(value, "label"), "label").lower()
                if reply not in ("yes", "no"):
                    raise BadRecordError("missing_field", f"'label': expected yes or no, not '{reply}'")
            except BadRecordError as error:
                yield bad(place, error, element.raw)
                continue
            turns = (Turn("user", (image, asked.strip())), Turn("assistant", (reply,)))
            tags = {"question_id": value.get("question_id", place.record), "file": name}
            number = f"{Path(name).stem}/{tags['question_id']}"
            yield place, Record(number, turns, (reply,), split_of(name), tags), ""


def _is_one(file: Path) -> bool:
    value = first_value(file)
    return isinstance(value, dict) and {"image", "text", "label"} <= value.keys()
