"""What readers yield: a record, where its images lie, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

# kind -> what it means, as docs/data.md lists them
KINDS = {
    "broken_json": "a line or an element that is no JSON",
    "not_utf8": "text that is not UTF-8",
    "missing_field": "a field that the format needs is not there, or is of another type",
    "empty_answer": "an answer or a caption without a word",
    "marker_without_image": "the text has more image markers than the record has images",
    "image_without_marker": "the record has more images than the text has image markers",
    "missing_file": "an image that is named but not there",
    "unsafe_path": "a path or an archive member that leads out of its folder, a link or a device",
    "corrupted_image": "bytes that cannot be decoded as an image",
    "truncated_image": "an image that ends before it should",
    "absurd_size": "an image with more pixels than the limit, or a side of none",
    "bad_box": "a box outside its image, or without extent",
}


@dataclass(frozen=True)
class Blob:
    """Where the bytes of an image lie.

    Attributes:
        file: relative to the folder of the data set.
        start, size: of a member of an archive; the whole file where `size` is None.
    """

    file: str
    start: int = 0
    size: int | None = None


@dataclass(frozen=True)
class Box:
    """A box in an image of the record.

    Attributes:
        corners: px of the image as it is stored: left, top, right, bottom, the last two exclusive.
    """

    corners: tuple[float, float, float, float]


Piece = str | Blob | bytes | Box  # bytes are those of an image that is not a file of its own


@dataclass(frozen=True)
class Turn:
    """What one side says, images where they stand.

    Attributes:
        who: "user" asks, "assistant" answers (supervised), "document" is running text (supervised where it is
            text), "system" is neither asked nor answered.
    """

    who: Literal["user", "assistant", "document", "system"]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Record:
    """One record of a data set.

    Attributes:
        turns: in order.
        answers: all that people answered, or all captions, for evaluation; the first is the one in `turns`.
        split: what the set itself calls it: train, validation, test, or "".
        tags: what a results file needs: question_id, image_id.
    """

    turns: tuple[Turn, ...]
    answers: tuple[str, ...] = ()
    split: str = ""
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a record stands.

    Attributes:
        file: relative to the folder of the data set.
        line: counted from 1, of text files; 0 where there are no lines.
        record: counted from 1, within the file.
    """

    file: str
    record: int
    line: int = 0

    def __str__(self) -> str:
        line = f", line {self.line}" if self.line else ""
        return f"{self.file}{line}, record {self.record}"


class BadRecordError(Exception):
    """A record that cannot be used.

    Attributes:
        kind: one of KINDS.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Problem:
    """What is wrong with a record, and where it stands.

    Attributes:
        kind: one of KINDS.
        message: what was found, what was expected.
        raw: the beginning of the record, for a quarantine.
    """

    place: Place
    kind: str
    message: str
    raw: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.kind.replace('_', ' ')}: {self.message}"


Found = tuple[Place, Record | BadRecordError, str]  # with the beginning of what stands there


class Reader(Protocol):
    """A module of this package.

    Attributes:
        SUMMARY: the format in a few words.
    """

    SUMMARY: str

    def recognises(self, root: Path, files: list[str]) -> bool:
        """Whether a folder is of this format.

        Args:
            root: the folder.
            files: some of its files, relative to it.
        """
        ...

    def records(self, root: Path, files: list[str]) -> Iterator[Found]:
        """All records in a fixed order.

        Args:
            root: the folder.
            files: those of its files that are no images.
        """
        ...
