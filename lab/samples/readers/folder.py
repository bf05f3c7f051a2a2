"""A folder of images with captions: `cat.jpg` beside `cat.txt`, or with a table (JSON Lines, CSV, TSV).

A table has `file_name` and a caption (`text`, `caption`), or a question and an answer, as the image folders
of Hugging Face have it in `metadata.jsonl` or `metadata.csv`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from lab.errors import LabError
from lab.samples.readers.columns import record_of
from lab.samples.readers.fields import ImageFolder, are_images, bad, ending, field, files_of, read, split_of
from lab.samples.readers.record import BadRecordError, Found, Place, Record
from lab.samples.readers.streams import BOM, LONGEST, Element, first_object, first_record, lines

SUMMARY = (
    "a folder of images with captions: `x.jpg` beside `x.txt`, or `metadata.jsonl` / `.csv` with `file_name`"
)
_NAMES = ("file_name", "file", "filename", "image", "path")


def recognises(root: Path, files: list[str]) -> bool:
    return any(are_images(files)) and bool(_tables(root, files) or ending(files, ".txt"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    images = ImageFolder(root)
    tables = _tables(root, files)

    def record(place: Place, element: Element) -> Record:
        value = element.value()
        image = images.find(*_relative(place.file, field(value, *_NAMES)))
        split = split_of(str(value.get("split", ""))) or split_of(place.file) or split_of(image.file)
        return record_of(value, [image], split)

    for name in tables:
        yield from read(name, _rows(root / name), record)
    if not tables:
        for number, name in enumerate(are_images(files_of(root)), start=1):
            place = Place(name, number)
            try:
                text = _beside(root / name)
                image = images.find(name)
                found = record_of({"caption": text}, [image], split_of(name))
            except BadRecordError as error:
                yield bad(place, error, name.encode())
                continue
            yield place, found, ""


def _beside(image: Path) -> str:
    file = image.with_suffix(".txt")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadRecordError("missing_file", f"no file '{file.name}' with its caption") from error
    except UnicodeDecodeError as error:
        raise BadRecordError("not_utf8", f"{file.name}, byte {error.start}") from error


def _relative(table: str, name: str) -> list[str]:
    """A name in a table, seen from the table's folder and from the data set's."""
    beside = (PurePosixPath(table).parent / name).as_posix()
    return list(dict.fromkeys([beside, name]))


def _tables(root: Path, files: list[str]) -> list[str]:
    found = [name for name in ending(files, ".jsonl") if _has_name(first_record(root / name))]
    for name in ending(files, ".csv", ".tsv"):
        found += [name] if _has_name(first_object(_rows(root / name))) else []
    return sorted(found)


def _has_name(value: dict[str, Any]) -> bool:
    return any(name in value for name in _NAMES)


def _rows(file: Path) -> Iterator[Element]:
    """The rows of a table as JSON texts; a row of bytes that are not UTF-8 stays as it is."""
    if file.suffix.lower() == ".jsonl":
        yield from lines(file)
        return
    mark = "\t" if file.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(LONGEST)
    with file.open("rb") as handle:
        if handle.read(len(BOM)) != BOM:
            handle.seek(0)
        text = io.TextIOWrapper(handle, encoding="latin-1", newline="")
        rows = csv.DictReader(text, delimiter=mark)
        try:
            for row in rows:
                values = {key: one for key, one in row.items() if key is not None and isinstance(one, str)}
                raw = json.dumps(values, ensure_ascii=False).encode("latin-1", "replace")
                yield Element("", rows.line_num, raw)
        except csv.Error as error:
            raise LabError(f"{file}, line {rows.line_num}: cannot be read as a table: {error}") from error
