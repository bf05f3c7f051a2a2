"""JSON from front to back: elements of arrays, members of objects, lines; one at a time, with their places.

Text is scanned as Latin-1, in which a byte is a letter, so that JSON's own marks are found whatever the text
between them is. A single element is then read as UTF-8: one that is not spoils nothing but itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from lab.errors import LabError
from lab.samples.readers.record import BadRecordError

CHUNK = 1 << 20  # bytes read at once
BOM = b"\xef\xbb\xbf"  # which some programs write before a UTF-8 text
LONGEST = 64 << 20  # bytes of one element; whatever does not end by then is broken
_LOOKED_AT = 100  # elements among which one that is an object is looked for
_DECODER = json.JSONDecoder(strict=False)
_WHITE = " \t\r\n"
_NUMBER, _AFTER_NUMBER = "-0123456789", f"{_WHITE},]}}"  # how one begins, and what can follow it


@dataclass(frozen=True)
class Element:
    """One JSON value and where it stands.

    Attributes:
        key: of a member of an object, "" of an element of an array.
        line: counted from 1.
        raw: its bytes.
    """

    key: str
    line: int
    raw: bytes

    def value(self) -> Any:
        """What it says.

        Raises:
            BadRecordError: no UTF-8, or no JSON.
        """
        return parsed(self.raw)


def parsed(raw: bytes) -> Any:
    """A JSON text.

    Raises:
        BadRecordError: no UTF-8, or no JSON.
    """
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecordError("not_utf8", f"byte {error.start} ({raw[error.start]:#04x})") from error
    except (ValueError, RecursionError) as error:
        raise BadRecordError("broken_json", str(error)) from error


def lines(file: Path) -> Iterator[Element]:
    """The lines of a JSON Lines file, empty ones left out."""
    with file.open("rb") as handle:
        number = 0
        while raw := handle.readline(LONGEST):
            number += 1
            raw = raw.removeprefix(BOM) if number == 1 else raw
            if not raw.endswith(b"\n") and len(raw) == LONGEST:
                raise LabError(f"{file}, line {number}: longer than {LONGEST >> 20} MB")
            if raw.strip():
                yield Element("", number, raw.strip())


def first_object(found: Iterator[Element], among: int = _LOOKED_AT) -> dict[str, Any]:
    """The first object among the first elements, {} if there is none: its keys tell a format."""
    with suppress(LabError):
        for element in islice(found, among):
            with suppress(BadRecordError):
                if isinstance(value := element.value(), dict):
                    return value
    return {}


def first_record(file: Path) -> dict[str, Any]:
    """The first object among the records of a file (see `objects`), {} if there is none.

    A file that is neither an array nor called `.jsonl` has to begin with a whole one: a line somewhere within
    any other JSON text may look like a record.
    """
    lenient = starts_with(file) == "[" or file.suffix.lower() == ".jsonl"
    return first_object(objects(file), _LOOKED_AT if lenient else 1)


def starts_with(file: Path) -> str:
    """The first letter of a text file that is not white space, "" of an empty one."""
    with file.open("rb") as handle:
        return handle.read(4096).removeprefix(BOM).lstrip()[:1].decode("latin-1")


def objects(file: Path) -> Iterator[Element]:
    """The records of a file that is an array, or has one a line."""
    return elements(file) if starts_with(file) == "[" else lines(file)


def keys_of(file: Path) -> list[str]:
    """The keys of the object that a file is, up to the tenth."""
    try:
        with file.open("rb") as handle:
            found = []
            for key in _Scanner(file, handle).members():
                found.append(key)
                if len(found) == 10:
                    break
            return found
    except LabError:
        return []


def elements(file: Path, *keys: str) -> Iterator[Element]:
    """The elements of the array, or the members of the object, that stands at one of `keys`.

    Args:
        file: one JSON value.
        keys: of the object that the file is; none for the file's own elements or members.

    Raises:
        LabError: broken where no element begins or ends, so that nothing after it can be read.
    """
    with file.open("rb") as handle:
        scanner = _Scanner(file, handle)
        if not keys:
            yield from scanner.children()
            return
        for key in scanner.members():
            if key in keys:
                yield from scanner.children()
                return


class _Scanner:
    """A place in a JSON text that is read chunk by chunk."""

    def __init__(self, file: Path, handle: BinaryIO) -> None:
        self.file, self.handle = file, handle
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self.consumed = 0  # letters of all chunks that are done with
        self._more()
        self.text = self.text.removeprefix(BOM.decode("latin-1"))

    def children(self) -> Iterator[Element]:
        """Elements of the array, or members of the object, that begins here."""
        if self._peek() == "[":
            yield from self._array()
        else:
            for key in self.members():
                self._peek()
                line = self.line
                yield Element(key, line, self._value())

    def members(self) -> Iterator[str]:
        """Keys of the object that begins here; a value that the caller leaves is skipped."""
        self._expect("{")
        if self._peek() == "}":
            self._take()
            return
        while True:
            if self._peek() != '"':
                self._fail("a key")
            key = _DECODER.decode(self._value().decode("utf-8", "replace"))
            self._expect(":")
            self._peek()
            before = self.consumed
            yield key
            if self.consumed == before:
                self._skip()
            if self._peek() == ",":
                self._take()
                continue
            self._expect("}")
            return

    def _array(self) -> Iterator[Element]:
        self._expect("[")
        if self._peek() == "]":
            self._take()
            return
        while True:
            self._peek()
            line = self.line
            yield Element("", line, self._value())
            if self._peek() == ",":
                self._take()
                continue
            self._expect("]")
            return

    def _skip(self) -> None:
        """Over a value of any length."""
        if self._peek() == "[":
            for _ in self._array():
                pass
        else:
            self._value()

    def _value(self) -> bytes:
        """The text of the value that begins here, which has to fit into memory."""
        while True:
            try:
                _, end = _DECODER.raw_decode(self.text, self.at)
            except RecursionError:
                self._fail("a value that is not nested this deep")
            except ValueError:
                end = len(self.text)
                if self.ended or end - self.at > LONGEST:
                    self._fail("a value")
            whole = self.text[self.at] not in _NUMBER or self.text[end : end + 1] in _AFTER_NUMBER
            if (end < len(self.text) and whole) or self.ended:
                break
            self._more()
        raw = self.text[self.at : end]
        self._advance(end)
        return raw.encode("latin-1")

    def _peek(self) -> str:
        """The next letter that is not white space, "" at the end."""
        while True:
            end = self.at
            while end < len(self.text) and self.text[end] in _WHITE:
                end += 1
            self._advance(end)
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more()

    def _take(self) -> None:
        self._advance(self.at + 1)

    def _expect(self, letter: str) -> None:
        if self._peek() != letter:
            self._fail(f"'{letter}'")
        self._take()

    def _fail(self, wanted: str) -> None:
        found = self.text[self.at : self.at + 20].encode("latin-1").decode("utf-8", "replace")
        raise LabError(
            f"{self.file}, line {self.line}: expected {wanted}, found {found!r}; nothing after it can be read"
        )

    def _advance(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.consumed += end - self.at
        self.at = end

    def _more(self) -> None:
        chunk = self.handle.read(max(CHUNK, len(self.text) - self.at))  # twice as much, if it is one value
        self.ended = not chunk
        self.text = self.text[self.at :] + chunk.decode("latin-1")
        self.at = 0
