"""Phrases with boxes: region descriptions of Visual Genome, and referring expressions (RefCOCO) as JSON.

    Visual Genome  [{"id": 1, "regions": [{"phrase", "x", "y", "width", "height", "image_id"}, ...]}, ...]
    RefCOCO        {"images": [{"id", "file_name", "caption"}], "annotations": [{"image_id", "bbox"}]}
                   as MDETR distributes it, an image entry for each expression

RefCOCO's own `refs(unc).p` is a pickle, which could run a program and is not opened; MDETR's files say the
same. A request and its box make a record: "where is PHRASE ?" and the box. How the box is written is decided
when a sample is made: location words where the world has them, else numbers between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.samples.readers.fields import (
    ImageFolder,
    Join,
    bad,
    ending,
    field,
    image_names,
    read,
    said,
    split_of,
)
from lab.samples.readers.record import BadRecordError, Blob, Box, Found, Place, Record, Turn
from lab.samples.readers.streams import Element, elements, first_object, first_record, keys_of, objects

SUMMARY = "boxes: region descriptions of Visual Genome, or RefCOCO as JSON with `images` and `annotations`"
_NUMBER = (int, float)
_FARTHEST = 1e9  # px


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
    for number, element in enumerate(objects(root / name), start=1):
        try:
            value = element.value()
            regions = field(value, "regions", kind=list)
        except BadRecordError as error:
            yield bad(Place(name, number, element.line), error, element.raw)
            continue
        for region in regions:
            count += 1
            at = Place(name, count, element.line)
            try:
                image_id = region.get("image_id", value.get("id")) if isinstance(region, dict) else None
                image = images.find(
                    *image_names(str(field({"image_id": image_id}, "image_id", kind=(int, str))))
                )
                corner = [field(region, key, kind=_NUMBER) for key in ("x", "y", "width", "height")]
                turns = _request(image, field(region, "phrase"), corner)
            except BadRecordError as error:
                yield bad(at, error, repr(region).encode())
                continue
            yield at, Record(turns, split=split_of(name), tags={"image_id": image_id}), ""


def _refcoco(root: Path, name: str, images: ImageFolder) -> Iterator[Found]:
    boxes = Join()

    def keep(place: Place, element: Element) -> None:
        value = element.value()
        boxes.add(field(value, "image_id", kind=(int, str)), field(value, "bbox", kind=list))

    def record(place: Place, element: Element) -> Record:
        value = element.value()
        number = field(value, "id", kind=(int, str))
        image, found = images.find(field(value, "file_name")), boxes.all(number)
        if not found:
            raise BadRecordError("missing_field", f"no annotation has a 'bbox' for image {number}")
        corner = [field({"bbox": one}, "bbox", kind=_NUMBER) for one in found[0]]
        turns = _request(image, field(value, "caption"), corner)
        return Record(turns, split=split_of(name), tags={"image_id": number})

    yield from read(name, elements(root / name, "annotations"), keep)
    boxes.ready()
    yield from read(name, elements(root / name, "images"), record)
    boxes.close()


def _request(image: Blob, phrase: str, corner: Sequence[float]) -> tuple[Turn, ...]:
    """The turns of a phrase and its box: x, y, width and height, px.

    Raises:
        BadRecordError: no box of an image, or a phrase without a word.
    """
    # compared before they are converted: JSON has numbers that no float holds, and some write NaN
    if len(corner) != 4 or not all(abs(one) < _FARTHEST for one in corner) or min(corner[2:]) <= 0:
        shown = ", ".join(map(str, corner))[:60]
        raise BadRecordError("bad_box", f"[{shown}]: expected x, y, width and height, the last two above 0")
    left, top, width, height = map(float, corner)
    box = Box((left, top, left + width, top + height))
    asked = f"where is {said(phrase, 'phrase')} ?"
    return Turn("user", (image, asked)), Turn("assistant", (box,))


def _regions(file: Path) -> bool:
    return isinstance(first_record(file).get("regions"), list)


def _referring(file: Path) -> bool:
    return (
        "images" in keys_of(file)
        and "bbox" in first_object(elements(file, "annotations"))
        and "caption" in first_object(elements(file, "images"))
    )
