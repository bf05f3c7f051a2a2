"""Documents of text and images in turn.

    MMC4     {"text_list": [...], "image_info": [{"image_name": "x.jpg", "matched_text_index": 2}, ...]}
    OBELICS  {"texts": ["...", null, "..."], "images": [null, "x.jpg", null]}

An object a line or a JSON array. An image of MMC4 comes before the text that it was matched with. Only images
that are on this disk are read: an address in the web counts as a missing file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab.samples.readers.fields import ImageFolder, ending, field, read, split_of
from lab.samples.readers.record import BadRecordError, Found, Piece, Place, Record, Turn
from lab.samples.readers.streams import Element, first_record, objects

SUMMARY = "interleaved documents: MMC4 (`text_list`, `image_info`) or OBELICS (`texts`, `images`), JSON Lines"


def recognises(root: Path, files: list[str]) -> bool:
    return any(_is_one(root / name) for name in ending(files, ".json", ".jsonl"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)

    def find(name: Any) -> Piece:
        return images.find(field({"images": name}, "images"))

    def record(place: Place, element: Element) -> Record:
        return Record(document(element.value(), find), split=split_of(place.file))

    for name in ending(files, ".json", ".jsonl"):
        if _is_one(root / name):
            yield from read(name, objects(root / name), record)


def document(value: Any, find: Callable[[Any], Piece]) -> tuple[Turn, ...]:
    """The turns of a document: each a text with the images before it.

    Args:
        value: the record.
        find: the image of a name.

    Raises:
        BadRecordError: whatever is wrong with it.
    """
    matched = isinstance(value, dict) and "text_list" in value
    pieces = _mmc4(value, find) if matched else _obelics(value, find)
    turns: list[Turn] = []
    waiting: list[Piece] = []
    for piece in pieces:
        waiting.append(piece)
        if isinstance(piece, str):
            turns.append(Turn("document", tuple(waiting)))
            waiting = []
    if not turns:
        raise BadRecordError("empty_answer", "the document has no word")
    if waiting:  # images after the last text
        turns[-1] = Turn("document", (*turns[-1].pieces, *waiting))
    return tuple(turns)


def _mmc4(value: dict[str, Any], find: Callable[[Any], Piece]) -> list[Piece]:
    texts = field(value, "text_list", kind=list)
    before: dict[int, list[Piece]] = {}
    for entry in field(value, "image_info", kind=list):
        index = field(entry, "matched_text_index", kind=int)
        if not 0 <= index < len(texts):
            raise BadRecordError(
                "image_without_marker", f"'matched_text_index' is {index} of {len(texts)} texts"
            )
        before.setdefault(index, []).append(find(field(entry, "image_name")))
    found: list[Piece] = []
    for index, text in enumerate(texts):
        found += before.get(index, [])
        found += [text.strip()] if field({"text_list": text}, "text_list").strip() else []
    return found


def _obelics(value: dict[str, Any], find: Callable[[Any], Piece]) -> list[Piece]:
    texts, images = field(value, "texts", kind=list), field(value, "images", kind=list)
    if len(texts) != len(images):
        raise BadRecordError("missing_field", f"{len(texts)} 'texts' and {len(images)} 'images'")
    found: list[Piece] = []
    for text, image in zip(texts, images, strict=True):
        if (text is None) == (image is None):
            raise BadRecordError(
                "missing_field", "'texts' and 'images': expected either a text or an image in each place"
            )
        if image is not None:
            found.append(find(image))
        elif field({"texts": text}, "texts").strip():
            found.append(text.strip())
    return found


def _is_one(file: Path) -> bool:
    keys = first_record(file).keys()
    return {"text_list", "image_info"} <= keys or {"texts", "images"} <= keys
