"""Phrases with boxes: region descriptions of Visual Genome, and referring expressions (RefCOCO) as JSON.

    Visual Genome  [{"id": 1, "regions": [{"phrase", "x", "y", "width", "height", "image_id"}, ...]}, ...]
    RefCOCO        {"images": [{"id", "file_name", "caption"}], "annotations": [{"image_id", "bbox"}]}
                   as MDETR distributes it, an image entry for each expression

RefCOCO's own `refs(unc).p` is a pickle, which could run a program and is not opened; MDETR's files say the
same. A request and its box make a record: "where is PHRASE ?" and the box. How the box is written is decided
when a sample is made: location words where the world has them, else numbers between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    said,
    split_of,
)
from lab.samples.readers.record import BadRecordError, Blob, Box, Found, Place, Record, Turn
from lab.samples.readers.streams import elements, first_value, keys_of, objects

SUMMARY = "boxes: region descriptions of Visual Genome, or RefCOCO as JSON with `images` and `annotations`"
_NUMBER = (int, float)


def recognises(root: Path, files: list[str]) -> bool:
    return any(_regions(root / name) or _referring(root / name) for name in ending(files, ".json"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)
    for name in ending(files, ".json"):
        if _regions(root / name):
            yield from _visual_genome(root, name, images)
        elif _referring(root / name):
            yield from _refcoco(root, name, images)


def _visual_genome(root: Path, name: str, images: ImageFolder) -> Iterator[Found]:
    count = 0
    for place, element in placed(name, objects(root / name)):
        try:
            value = element.value()
            regions = field(value, "regions", kind=list)
        except BadRecordError as error:
            yield bad(place, error, element.raw)
            continue
        for region in regions:
            count += 1
            at = Place(name, count, element.line)
            try:
                number = region.get("image_id", value.get("id")) if isinstance(region, dict) else None
                image = images.find(
                    *image_names(str(field({"image_id": number}, "image_id", kind=(int, str))))
                )
                corner = [float(field(region, key, kind=_NUMBER)) for key in ("x", "y", "width", "height")]
                turns = _request(image, field(region, "phrase"), corner)
            except BadRecordError as error:
                yield bad(at, error, repr(region).encode())
                continue
            label = str(region.get("region_id", ""))
            yield at, Record(label, turns, split=split_of(name), tags={"image_id": number}), ""


def _refcoco(root: Path, name: str, images: ImageFolder) -> Iterator[Found]:
    boxes = Join()
    for place, element in placed(name, elements(root / name, "annotations")):
        try:
            value = element.value()
            boxes.add(field(value, "image_id", kind=(int, str)), field(value, "bbox", kind=list))
        except BadRecordError as error:
            yield bad(place, error, element.raw)
    boxes.ready()
    for place, element in placed(name, elements(root / name, "images")):
        try:
            value = element.value()
            number = field(value, "id", kind=(int, str))
            image, found = images.find(field(value, "file_name")), boxes.all(number)
            if not found:
                raise BadRecordError("missing_field", f"no annotation has a 'bbox' for image {number}")
            corner = [float(field({"bbox": one}, "bbox", kind=_NUMBER)) for one in found[0]]
            turns = _request(image, field(value, "caption"), corner)
        except BadRecordError as error:
            yield bad(place, error, element.raw)
            continue
        yield place, Record(str(number), turns, split=split_of(name), tags={"image_id": number}), ""
    boxes.close()


def _request(image: Blob, phrase: str, corner: list[float]) -> tuple[Turn, ...]:
    if len(corner) != 4 or corner[2] <= 0 or corner[3] <= 0:
        raise BadRecordError("bad_box", f"{corner}: expected x, y, width and height, the last two above 0")
    left, top, width, height = corner
    box = Box((left, top, left + width, top + height))
    asked = f"where is {said(phrase, 'phrase')} ?"
    return Turn("user", (image, asked)), Turn("assistant", (box,))


def _regions(file: Path) -> bool:
    value = first_value(file)
    return isinstance(value, dict) and isinstance(value.get("regions"), list)


def _referring(file: Path) -> bool:
    if not {"images", "annotations"} <= set(keys_of(file)):
        return False
    try:
        value: Any = next(elements(file, "annotations")).value()
        image: Any = next(elements(file, "images")).value()
    except (StopIteration, BadRecordError):
        return False
    return isinstance(value, dict) and "bbox" in value and isinstance(image, dict) and "caption" in image
