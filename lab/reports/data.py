"""What `lab data inspect` says of a data set, and its contact sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lab.config import SPLITS
from lab.errors import LabError
from lab.samples.datasets import DataSet
from lab.samples.images import Fitting, decode, fitted
from lab.samples.index import Row, Shot
from lab.samples.readers.formats import reader_of
from lab.samples.readers.record import Box
from lab.samples.tokenizer import Tokenizer, plain_words

_COLUMNS, _SIDE, _TEXT = 6, 160, 44  # of a sheet: images a row; px, of an image, of the words below it
_PROBLEMS = 10  # that are shown one by one
_COUNTED = 20_000  # rows whose lengths and sizes stand for all


def description(data: DataSet, samples: int, tokenizer: Tokenizer | None) -> Iterator[str]:
    """Lines about a data set: format, rows, images, lengths, samples, problems.

    Args:
        data: with its index.
        samples: how many are shown, evenly spread.
        tokenizer: whose tokens are counted; None for words.
    """
    counts = data.index.counts
    yield f"format     {data.params.format}: {reader_of(data.params.format).SUMMARY}"
    splits = ", ".join(f"{split} {len(data.rows(split)):,}" for split in SPLITS)
    yield f"rows       {len(data):,} ({splits}; splits: {data.params.splits})"
    chosen = np.unique(np.linspace(0, len(data) - 1, min(_COUNTED, len(data))).astype(int))
    sizes, asked, answered = [], [], []
    for number in chosen:
        row = data.index.row(int(number))
        sizes += [(shot.width, shot.height) for shot in row.shots]
        asked.append(_length(row, ("user", "system"), tokenizer))
        answered.append(_length(row, ("assistant", "document"), tokenizer))
    sides = np.array(sizes).reshape(-1, 2)
    across = f"; {_range(sides[:, 0])} px wide, {_range(sides[:, 1])} px high" if len(sides) else ""
    yield f"images     {counts['images']:,}{across}"
    unit = "words" if tokenizer is None else "tokens"
    yield f"{unit:10} asked {_spread(asked)}; answered {_spread(answered)}"
    kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in counts["problems"].items())
    yield f"problems   {kinds or 'none'}"
    yield from (f"  {one}" for _, one in zip(range(_PROBLEMS), data.index.problems(), strict=False))
    if data.skipped > _PROBLEMS:
        yield f"  and {data.skipped - _PROBLEMS:,} more"
    for number in _spread_over(len(data), samples):
        row = data.index.row(number)
        yield ""
        yield f"[{row.place}]"
        for who, pieces in row.turns:
            yield f"  {who:9} {' '.join(_shown(piece) for piece in pieces)}"


def contact_sheet(data: DataSet, images: int, file: Path) -> int:
    """Writes a picture of some images with what is said about them; how many are on it.

    Args:
        data: with its index.
        images: at most so many, of rows evenly spread.
        file: to write; left alone where there is no image.

    Raises:
        LabError: it cannot be written.
    """
    from PIL import Image, ImageDraw

    rows = [data.index.row(number) for number in _spread_over(len(data), images)]
    rows = [row for row in rows if row.shots]
    if not rows:
        return 0
    height = -(-len(rows) // _COLUMNS) * (_SIDE + _TEXT)
    sheet = Image.new("RGB", (_COLUMNS * _SIDE, height), "white")
    pen = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows):
        shot = row.shots[0]
        down, across = divmod(place, _COLUMNS)
        corner = (across * _SIDE, down * (_SIDE + _TEXT))
        picture = decode(data.index.bytes_of(shot.blob), data.params.limit, _SIDE)
        pixels = fitted(picture, Fitting(_SIDE - 8, "pad")).transpose(1, 2, 0)
        sheet.paste(Image.fromarray((pixels * 255).round().astype(np.uint8)), (corner[0] + 4, corner[1] + 4))
        words = " / ".join(piece for _, pieces in row.turns for piece in pieces if isinstance(piece, str))
        lines = textwrap.wrap(words, 26)[:3]
        text = "\n".join(lines).encode("latin-1", "replace").decode("latin-1")  # what its letters cover
        pen.multiline_text((corner[0] + 4, corner[1] + _SIDE), text, fill="black", font_size=10)
    try:
        sheet.save(file)
    except (OSError, ValueError) as error:
        raise LabError(f"{file}: cannot be written: {error}") from error
    return len(rows)


def _length(row: Row, sides: Sequence[str], tokenizer: Tokenizer | None) -> int:
    texts = [piece for who, pieces in row.turns if who in sides for piece in pieces if isinstance(piece, str)]
    return sum(len(plain_words(text)) if tokenizer is None else len(tokenizer.encode(text)) for text in texts)


def _spread(lengths: Sequence[int]) -> str:
    if not lengths:
        return "-"
    middle, high = (int(np.percentile(lengths, share)) for share in (50, 95))
    return f"{middle} (median), {high} (95%), {max(lengths)} (most)"


def _range(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _spread_over(rows: int, count: int) -> list[int]:
    return [int(row) for row in np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(int))]


def _shown(piece: str | Shot | Box) -> str:
    if isinstance(piece, Shot):
        return f"[{piece.blob.file} {piece.width}x{piece.height}]"
    return f"{list(piece.corners)}" if isinstance(piece, Box) else textwrap.shorten(piece, 200)
