"""LLaVA's conversations: a JSON array, or an object a line, of records such as

    {"id": "1", "image": "cat.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}

`image` may be a list, or missing. `messages` with `role` and `content` are read likewise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.samples.readers.fields import ImageFolder, ending, field, read, said, split_of, with_images
from lab.samples.readers.record import BadRecordError, Found, Piece, Place, Record, Turn
from lab.samples.readers.streams import Element, first_record, objects

SUMMARY = "conversations of LLaVA: JSON or JSON Lines with `conversations` or `messages`"
_WHO = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def recognises(root: Path, files: list[str]) -> bool:
    return any(_is_one(root / name) for name in ending(files, ".json", ".jsonl"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)

    def record(place: Place, element: Element) -> Record:
        value = element.value()
        found = [images.find(one) for one in _named(value)]
        return Record(conversation(value, found), split=split_of(place.file))

    for name in ending(files, ".json", ".jsonl"):
        if _is_one(root / name):
            yield from read(name, objects(root / name), record)


def conversation(value: Any, images: Sequence[Piece]) -> tuple[Turn, ...]:
    """The turns of a record with `conversations` or `messages`.

    Raises:
        BadRecordError: whatever is wrong with them.
    """
    turns = field(value, "conversations", "messages", kind=list)
    texts, sides = [], []
    for number, turn in enumerate(turns, start=1):
        side = field(turn, "from", "role")
        if side not in _WHO:
            raise BadRecordError("missing_field", f"turn {number}: nobody is called '{side}'")
        text = field(turn, "value", "content")
        texts.append(said(text, f"answer of turn {number}") if _WHO[side] == "assistant" else text)
        sides.append(_WHO[side])
    if "assistant" not in sides:
        raise BadRecordError("empty_answer", "nobody answers")
    spoken = [side for side in sides if side != "system"]
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise BadRecordError("missing_field", f"expected question and answer in turn, not {', '.join(sides)}")
    pieces = with_images(texts, images)
    if (
        texts and sides[0] == "system" and pieces[0][:1] != (texts[0].strip(),)
    ):  # an image that no marker places
        pieces[0], pieces[1] = pieces[0][len(images) :], (*images, *pieces[1])
    return tuple(Turn(side, part) for side, part in zip(sides, pieces, strict=True))  # type: ignore[arg-type]


def _named(value: Any) -> list[str]:
    """The names of a record's images."""
    found = field(
        {"image": [], **value} if isinstance(value, dict) else value, "images", "image", kind=(str, list)
    )
    return [found] if isinstance(found, str) else [field({"image": one}, "image") for one in found]


def _is_one(file: Path) -> bool:
    return bool({"conversations", "messages"} & first_record(file).keys())
