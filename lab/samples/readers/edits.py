"""Edits as in InstructPix2Pix: an image, an instruction, the edited image.

Either an object a line (or a JSON array) with `input_image`, `edit` and `edited_image`, or names like these;
or InstructPix2Pix's own folders, each with a `prompt.json` and pairs `SEED_0.jpg`, `SEED_1.jpg`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lab.samples.readers.fields import (
    ImageFolder,
    are_images,
    bad,
    ending,
    field,
    files_of,
    read,
    said,
    split_of,
)
from lab.samples.readers.record import BadRecordError, Found, Piece, Place, Record, Turn
from lab.samples.readers.streams import Element, first_record, keys_of, objects, parsed

SUMMARY = (
    "edits of InstructPix2Pix: image, instruction, edited image; JSON Lines or folders with `prompt.json`"
)
BEFORE = ("input_image", "original_image", "source_image", "source_img", "input", "image")
ASKED = ("edit", "edit_prompt", "instruction", "prompt")
AFTER = ("edited_image", "output_image", "target_image", "target_img", "output")


def recognises(root: Path, files: list[str]) -> bool:
    named = (name for name in files if PurePosixPath(name).name == "prompt.json")
    return any("edit" in keys_of(root / name) for name in named) or any(
        _is_one(root / name) for name in ending(files, ".json", ".jsonl")
    )


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)

    def record(place: Place, element: Element) -> Record:
        value = element.value()
        before, after = (images.find(field(value, *names)) for names in (BEFORE, AFTER))
        return Record(edit(before, field(value, *ASKED), after), split=split_of(place.file))

    for name in ending(files, ".json", ".jsonl"):
        if PurePosixPath(name).name == "prompt.json":
            yield from _pairs(root, name, images)
        elif _is_one(root / name):
            yield from read(name, objects(root / name), record)


def edit(before: Piece, asked: str, after: Piece) -> tuple[Turn, ...]:
    """The turns of an edit.

    Raises:
        BadRecordError: an instruction without a word.
    """
    return Turn("user", (before, said(asked, "instruction"))), Turn("assistant", (after,))


def _pairs(root: Path, name: str, found_in: ImageFolder) -> Iterator[Found]:
    """The pairs of images beside a prompt.json."""
    raw = (root / name).read_bytes()
    folder = PurePosixPath(name).parent
    beside = [
        (folder / one).as_posix() for one in are_images(files_of((root / name).parent)) if "/" not in one
    ]
    inputs = [one for one in beside if PurePosixPath(one).stem.endswith("_0")]
    for number, before in enumerate(inputs, start=1):
        place = Place(name, number)
        path = PurePosixPath(before)
        after = path.with_name(f"{path.stem[:-1]}1{path.suffix}").as_posix()
        try:
            if after not in beside:
                raise BadRecordError("missing_file", f"no file '{after}'")
            turns = edit(found_in.find(before), field(parsed(raw), "edit"), found_in.find(after))
        except BadRecordError as error:
            yield bad(place, error, raw)
            continue
        yield place, Record(turns, split=split_of(name)), ""


def _is_one(file: Path) -> bool:
    keys = first_record(file).keys()
    return all(keys & set(names) for names in (BEFORE, ASKED, AFTER))
