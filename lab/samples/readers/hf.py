"""Tables of Hugging Face `datasets`: Parquet files, and Arrow files as `save_to_disk` and its cache write.

Columns are known by their names: an image (or a list of them) with a caption, with a question and answers,
with `conversations`; an edit; an OBELICS document. Rows come in small batches, so a table of any length takes
the memory of one batch. Its images are copied once to the index, where each is found again in one read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.samples.readers import edits
from lab.samples.readers.columns import record_of
from lab.samples.readers.fields import ImageFolder, bad, ending, field, split_of
from lab.samples.readers.interleaved import document
from lab.samples.readers.record import BadRecordError, Found, Piece, Place, Record

SUMMARY = "Hugging Face `datasets`: Parquet or Arrow with images, captions, questions, conversations or edits"
_BATCH = 16  # rows held at once
_IMAGES = ("image", "images", "img", "jpg", "png")


def recognises(root: Path, files: list[str]) -> bool:
    return bool(ending(files, ".parquet", ".arrow"))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    folder = ImageFolder(root)
    for name in ending(files, ".parquet", ".arrow"):
        number = 0
        for rows in _batches(root / name):
            for value in rows:
                number += 1
                place = Place(name, number)
                try:
                    found = _record(value, folder, split_of(name))
                except BadRecordError as error:
                    yield bad(place, error, repr({key: _shown(one) for key, one in value.items()}).encode())
                    continue
                yield place, found, ""


def _batches(file: Path) -> Iterator[list[dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.suffix.lower() == ".parquet":
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=_BATCH, use_threads=False):
                    yield batch.to_pylist()
            return
        with pa.memory_map(str(file)) as source:
            for batch in _arrow(source):
                for start in range(0, batch.num_rows, _BATCH):
                    yield batch.slice(start, _BATCH).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise LabError(f"{file}: cannot be read as a table: {' '.join(str(error).split())}") from error


def _arrow(source: Any) -> Iterator[Any]:
    """Batches of an Arrow file, or of an Arrow stream, which `datasets` writes."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    for number in range(table.num_record_batches):
        yield table.get_batch(number)


def _record(value: dict[str, Any], folder: ImageFolder, split: str) -> Record:
    def image(given: Any) -> Piece:
        if isinstance(given, bytes):
            return given
        if isinstance(given, dict) and given.get("bytes") is not None:
            return bytes(field(given, "bytes", kind=bytes))
        if isinstance(given, dict) and given.get("path"):
            return folder.find(field(given, "path"))
        return folder.find(field({"image": given}, "image"))

    present = {key for key, one in value.items() if one is not None}
    if all(present & set(names) for names in (edits.BEFORE, edits.ASKED, edits.AFTER)):
        before, after = (
            image(field(value, *names, kind=(dict, bytes, str))) for names in (edits.BEFORE, edits.AFTER)
        )
        return Record(edits.edit(before, field(value, *edits.ASKED), after), split=split)
    if {"texts", "images"} <= present:
        return Record(document(value, image), split=split)
    images: list[Piece] = []
    for key in _IMAGES:
        if key in present:
            given = value[key]
            images += [image(one) for one in (given if isinstance(given, list) else [given])]
    return record_of(value, images, split)


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return {key: _shown(one) for key, one in value.items()}
    return value
