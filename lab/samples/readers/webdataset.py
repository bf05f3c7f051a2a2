"""WebDataset: tar shards in which files of one stem are one record.

    000001.jpg  000001.txt      a caption
    000002.jpg  000002.json     an object with `caption`, with `question` and `answers`, or `conversations`

Shards are read where they are: nothing is unpacked, and an image is found again by its offset. A member that
climbs out of the archive's folder, a link or a device is reported, whatever it would lead to.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lab.errors import LabError
from lab.samples.images import SUFFIXES
from lab.samples.readers.columns import record_of
from lab.samples.readers.fields import bad, ending, split_of
from lab.samples.readers.record import BadRecordError, Blob, Found, Piece, Place
from lab.samples.readers.streams import LONGEST, parsed

SUMMARY = "WebDataset: `.tar` shards of images with `.txt` or `.json` of the same stem"
_SHARDS = (".tar", ".tar.gz", ".tgz")
_KINDS = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link", tarfile.CHRTYPE: "a device"}
_KINDS |= {tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe"}
Member = tuple[str, Piece]  # suffix; a text, or where an image lies


def recognises(root: Path, files: list[str]) -> bool:
    return bool(ending(files, *_SHARDS))


def records(root: Path, files: list[str]) -> Iterator[Found]:
    for name in ending(files, *_SHARDS):
        number, stem, members, wrong = 0, "", list[Member](), None
        for member, found in _members(root, name):
            if isinstance(found, BadRecordError) and found.kind == "unsafe_path":
                number += 1
                yield bad(Place(name, number), found, member.encode())
                continue
            its_stem, _, suffix = member.partition("/")[2].rpartition("\0")
            if its_stem != stem and members:
                number += 1
                yield _record(name, number, stem, members, wrong)
            if its_stem != stem:
                stem, members, wrong = its_stem, [], None
            if isinstance(found, BadRecordError):
                wrong = found
            else:
                members.append((suffix, found))
        if members:
            yield _record(name, number + 1, stem, members, wrong)


def _members(root: Path, name: str) -> Iterator[tuple[str, Piece | BadRecordError]]:
    """The members of a shard: "/STEM\\0SUFFIX", and its text, its place, or what is wrong with it."""
    plain = name.lower().endswith(".tar")
    try:
        with tarfile.open(root / name, "r:" if plain else "r:gz") as shard:
            for member in shard:
                path = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if not member.isreg():
                    kind = _KINDS.get(member.type, "no plain file")
                    yield member.name, BadRecordError("unsafe_path", f"member '{member.name}' is {kind}")
                    continue
                if path.is_absolute() or ".." in path.parts:
                    reason = f"member '{member.name}' leads out of its folder"
                    yield member.name, BadRecordError("unsafe_path", reason)
                    continue
                stem, suffix = re.fullmatch(r"([^.]*)(.*)", path.name, re.DOTALL).groups()  # type: ignore[union-attr]
                key, suffix = f"/{path.parent / stem}\0{suffix.lower()}", suffix.lower()
                if suffix in SUFFIXES and plain:
                    yield key, Blob(name, member.offset_data, member.size)
                elif suffix in (*SUFFIXES, ".txt", ".caption", ".json"):
                    if member.size > LONGEST:
                        yield (
                            key,
                            BadRecordError("absurd_size", f"member '{member.name}': {member.size} bytes"),
                        )
                        continue
                    data = shard.extractfile(member).read()  # type: ignore[union-attr]
                    yield key, data if suffix in SUFFIXES else _text(data)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise LabError(f"{root / name}: cannot be read as a tar archive: {error}") from error


def _text(data: bytes) -> str | BadRecordError:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return BadRecordError("not_utf8", f"byte {error.start} ({data[error.start]:#04x})")


def _record(name: str, number: int, stem: str, members: list[Member], wrong: BadRecordError | None) -> Found:
    place = Place(name, number)
    texts = {suffix: text for suffix, text in members if isinstance(text, str)}
    raw = next(iter(texts.values()), stem).encode()
    try:
        if wrong is not None:
            raise wrong
        value = parsed(texts[".json"].encode()) if ".json" in texts else {}
        value = value if isinstance(value, dict) else {}
        for suffix in (".txt", ".caption"):
            if suffix in texts:
                value.setdefault("caption", texts[suffix])
        images = [piece for suffix, piece in members if suffix in SUFFIXES]
        if not images:
            raise BadRecordError("missing_file", f"no image beside {', '.join(texts)} of '{stem}'")
        return place, record_of(value, images, split_of(name)), ""
    except BadRecordError as error:
        return bad(place, error, raw)
