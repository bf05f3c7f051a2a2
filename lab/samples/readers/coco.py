"""COCO captions: one object with `images` and `annotations`, the captions; an image is a record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.samples.readers.fields import (
    CAPTION_PROMPT,
    ImageFolder,
    Join,
    ending,
    field,
    read,
    said,
    split_of,
)
from lab.samples.readers.record import BadRecordError, Found, Place, Record, Turn
from lab.samples.readers.streams import Element, elements, first_object, keys_of

SUMMARY = "captions of COCO: JSON with `images` and `annotations` that have a `caption`"


def recognises(root: Path, files: list[str]) -> bool:
    return any(_is_one(root / name) for name in ending(files, ".json"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)
    for name in ending(files, ".json"):
        if _is_one(root / name):
            yield from _captioned(root, name, images)


def _captioned(root: Path, name: str, images: ImageFolder) -> Iterator[Found]:
    captions = Join()

    def keep(place: Place, element: Element) -> None:
        value = element.value()
        text = said(field(value, "caption"), "caption")
        captions.add(field(value, "image_id", kind=(int, str)), text)

    def record(place: Place, element: Element) -> Record:
        value = element.value()
        number = field(value, "id", kind=(int, str))
        image = images.find(field(value, "file_name"))
        texts = tuple(captions.all(number))
        if not texts:
            raise BadRecordError("empty_answer", f"image {number} has no caption")
        turns = (Turn("user", (image, CAPTION_PROMPT)), Turn("assistant", texts[:1]))
        return Record(turns, texts, split_of(name), {"image_id": number})

    yield from read(name, elements(root / name, "annotations"), keep)
    captions.ready()
    yield from read(name, elements(root / name, "images"), record)
    captions.close()


def _is_one(file: Path) -> bool:
    return "images" in keys_of(file) and "caption" in first_object(elements(file, "annotations"))
