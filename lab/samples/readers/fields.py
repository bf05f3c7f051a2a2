"""What readers share: fields of records, image markers, images by name, safe places, split names."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from lab.samples.images import SUFFIXES
from lab.samples.readers.record import BadRecordError, Blob, Found, Piece, Place, Record
from lab.samples.readers.streams import Element

MARKER = "<image>"
CAPTION_PROMPT = "describe the image"
DRAW_PROMPT = "draw :"
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
}
_SPLITS |= {"validation": "validation", "test": "test", "testing": "test", "testdev": "test", "eval": "test"}
_DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
_SHOWN = 2000  # letters of a bad record that are kept
_RECALLED = 1024  # names whose places are kept: questions about one image follow each other


def field(record: Any, *names: str, kind: type | tuple[type, ...] = str) -> Any:
    """The value of the first of some names that a record has.

    Raises:
        BadRecordError: it has none of them, or of another type.
    """
    if not isinstance(record, dict):
        raise BadRecordError("missing_field", f"expected an object, not {_short(record)}")
    for name in names:
        if record.get(name) is not None:
            if isinstance(record[name], bool) or not isinstance(record[name], kind):
                kinds = kind if isinstance(kind, tuple) else (kind,)
                wanted = " or ".join(one.__name__ for one in kinds)
                raise BadRecordError(
                    "missing_field", f"'{name}': expected {wanted}, not {_short(record[name])}"
                )
            return record[name]
    raise BadRecordError(
        "missing_field", f"no '{names[0]}'; it has {', '.join(map(str, record)) or 'nothing'}"
    )


def said(text: str, what: str) -> str:
    """A text that must have a word.

    Raises:
        BadRecordError: it has none.
    """
    if not text.strip():
        raise BadRecordError("empty_answer", f"the {what} has no word")
    return text.strip()


def with_images(texts: Sequence[str], images: Sequence[Piece]) -> list[tuple[Piece, ...]]:
    """Texts with images where their markers stand. A single image that no marker places comes first.

    Raises:
        BadRecordError: more markers than images, or several images and fewer markers.
    """
    markers = sum(text.count(MARKER) for text in texts)
    if markers > len(images):
        kind = "marker_without_image"
        raise BadRecordError(kind, f"{markers} markers '{MARKER}', {len(images)} images")
    if markers < len(images) and (markers or len(images) > 1):
        kind = "image_without_marker"
        raise BadRecordError(kind, f"{len(images)} images, {markers} markers '{MARKER}'")
    rest = iter(images)
    found: list[tuple[Piece, ...]] = []
    for text in texts:
        pieces: list[Piece] = []
        for number, part in enumerate(text.split(MARKER)):
            pieces += [next(rest)] if number else []
            pieces += [part.strip()] if part.strip() else []
        found.append(tuple(pieces))
    if not markers and images:
        found[0] = (*images, *found[0])
    return found


class ImageFolder:
    """Finds images by the names that records give them.

    Args:
        root: the folder of the data set; a name is looked for there, in its folders of images and in theirs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = root.resolve()
        self._places = [root, *sorted(place for place in root.glob("*/") if not place.name.startswith("."))]
        self._places += sorted(place for place in root.glob("*/*/") if not place.name.startswith("."))[:200]
        self.find = lru_cache(_RECALLED)(self._find)

    def _find(self, *names: str) -> Blob:
        """The first file that there is of some names.

        Raises:
            BadRecordError: there is none, or it lies outside the folder.
        """
        for name in names:
            _check(name)
        for number, place in enumerate(self._places):
            for name in names:
                if _is_file(place / name):
                    self._places.insert(0, self._places.pop(number))  # the next is likely to be there too
                    return Blob(self._inside(place / name))
        raise BadRecordError("missing_file", f"no file {' or '.join(map(repr, names))} in {self.root}")

    def _inside(self, file: Path) -> str:
        real = file.resolve()
        if not real.is_relative_to(self._real) and not _DVC_CACHE.search(real.as_posix()):
            raise BadRecordError("unsafe_path", f"'{file}' is a link that leads out of {self.root}")
        return file.relative_to(self.root).as_posix()


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that is too long, for example
        return False


def _check(name: str) -> None:
    if (
        PurePosixPath(name).is_absolute()
        or ".." in PurePosixPath(name.replace("\\", "/")).parts
        or "\0" in name
    ):
        raise BadRecordError("unsafe_path", f"'{name}' leads out of its folder")


def image_names(stem: str) -> list[str]:
    """Names that a file may have of which only the stem is known."""
    return [f"{stem}{suffix}" for suffix in SUFFIXES[:5]]


def split_of(file: str) -> str:
    """train, validation or test, as words of a path say; "" if none does."""
    for word in reversed(re.split(r"[^a-z]+", file.lower())):
        if word in _SPLITS:
            return _SPLITS[word]
    return ""


def files_of(root: Path) -> Iterator[str]:
    """Files below a folder, relative to it, hidden ones left out; folders last."""
    for place in sorted(root.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if place.name.startswith((".", "__")):
            continue
        if place.is_dir():
            if place.is_symlink():  # may lead anywhere, or round in a circle
                continue
            yield from (f"{place.name}/{name}" for name in files_of(place))
        else:
            yield place.name


def are_images(files: Iterable[str]) -> Iterator[str]:
    """The names of images among some files."""
    return (name for name in files if name.lower().endswith(SUFFIXES))


def ending(files: Iterable[str], *suffixes: str) -> list[str]:
    """The files with one of some endings, in order."""
    return sorted(name for name in files if name.lower().endswith(suffixes))


def read(
    file: str, elements: Iterable[Element], record: Callable[[Place, Element], Record | None]
) -> Iterator[Found]:
    """The records of a file: of each element one, or what is wrong with it.

    Args:
        file: relative to the folder of the data set.
        elements: of the file.
        record: makes one of an element and its place; None where an element is kept for others (see `Join`).
    """
    for number, element in enumerate(elements, start=1):
        place = Place(file, number, element.line)
        try:
            made = record(place, element)
        except BadRecordError as error:
            yield bad(place, error, element.raw)
            continue
        if made is not None:
            yield place, made, ""


def bad(place: Place, error: BadRecordError, raw: bytes = b"") -> Found:
    """A record that cannot be used, as readers yield it."""
    return place, error, raw[:_SHOWN].decode("utf-8", "replace")


class Join:
    """Keys and values of one file that another refers to; on disk beyond a few megabytes."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("")
        self._table.execute("create table pairs (key text, number integer, value text)")
        self._count = 0

    def add(self, key: object, value: Any) -> None:
        self._count += 1
        self._table.execute("insert into pairs values (?, ?, ?)", (str(key), self._count, json.dumps(value)))

    def ready(self) -> None:
        """To be called between the last `add` and the first `all`."""
        self._table.execute("create index by_key on pairs (key, number)")

    def all(self, key: object) -> list[Any]:
        """Values of a key in the order in which they came."""
        found = self._table.execute("select value from pairs where key = ? order by number", (str(key),))
        return [json.loads(value) for (value,) in found]

    def close(self) -> None:
        self._table.close()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
