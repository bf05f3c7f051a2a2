"""COCO captions: one object with `images` and `annotations`, the captions; an image is a record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.samples.readers.fields import (
    CAPTION_PROMPT,
    ImageFolder,
    Join,
    bad,
    ending,
    field,
    placed,
    said,
    split_of,
)
from lab.samples.readers.record import BadRecordError, Found, Record, Turn
from lab.samples.readers.streams import elements, keys_of

SUMMARY = "captions of COCO: JSON with `images` and `annotations` that have a `caption`"


def recognises(root: Path, files: list[str]) -> bool:
    return any(_is_one(root / name) for name in ending(files, ".json"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)
    for name in ending(files, ".json"):
        if not _is_one(root / name):
            continue
        captions = Join()
        for place, element in placed(name, elements(root / name, "annotations")):
            try:
                value = element.value()
                text = said(field(value, "caption"), "caption")
                captions.add(field(value, "image_id", kind=(int, str)), text)
            except BadRecordError as error:
                yield bad(place, error, element.raw)
        captions.ready()
        for place, element in placed(name, elements(root / name, "images")):
            try:
                value = element.value()
                number = field(value, "id", kind=(int, str))
                image = images.find(field(value, "file_name"))
                texts = tuple(captions.all(number))
                if not texts:
                    raise BadRecordError("empty_answer", f"image {number} has no caption")
            except BadRecordError as error:
                yield bad(place, error, element.raw)
                continue
            turns = (Turn("user", (image, CAPTION_PROMPT)), Turn("assistant", texts[:1]))
            yield place, Record(str(number), turns, texts, split_of(name), {"image_id": number}), ""
        captions.close()


def _is_one(file: Path) -> bool:
    if not {"images", "annotations"} <= set(keys_of(file)):
        return False
    try:
        return "caption" in next(elements(file, "annotations")).value()
    except (StopIteration, BadRecordError, TypeError):
        return False
