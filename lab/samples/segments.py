"""A sample is a list of segments. Every task, from captioning to editing, is this one type."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
IMAGE_START, IMAGE_END = "<image_start>", "<image_end>"
USER, ASSISTANT = "<user>", "<assistant>"
SPECIAL_TOKENS = (PAD, BOS, EOS, IMAGE_START, IMAGE_END, USER, ASSISTANT)


class Picture:
    """An image that is read or rendered when its pixels are asked for, and then kept.

    Args:
        load: makes the pixels, (3, H, W) float32 in [0, 1].
        name: makes the key, which names the content: equal keys mean equal pixels, wherever they come from.
    """

    def __init__(self, load: Callable[[], np.ndarray], name: Callable[[], str]) -> None:
        self._load, self._name = load, name

    @cached_property
    def pixels(self) -> np.ndarray:
        """(3, H, W) float32 in [0, 1]."""
        return self._load()

    @cached_property
    def key(self) -> str:
        """Names the content."""
        return self._name()


@dataclass(frozen=True)
class Segment:
    """A piece of a sample: either text or an image.

    Attributes:
        text: words, special tokens included; None for an image.
        picture: None for text.
        supervised: whether the model learns to produce this segment.
    """

    text: str | None = None
    picture: Picture | None = None
    supervised: bool = False

    def __post_init__(self) -> None:
        if (self.text is None) == (self.picture is None):
            raise ValueError("a segment holds either text or an image")

    @property
    def pixels(self) -> np.ndarray | None:
        """(3, H, W) float32 in [0, 1], made now if nobody asked before; None for text."""
        return None if self.picture is None else self.picture.pixels


@dataclass(frozen=True)
class Sample:
    """One training or evaluation example.

    Attributes:
        id: names the sample in logs and errors; equal ids mean equal content.
        task: caption, vqa, text_to_image, ... ; losses are logged by it.
        segments: what the model reads and produces, in order.
    """

    id: str
    task: str
    segments: tuple[Segment, ...]


def image(pixels: np.ndarray, supervised: bool = False) -> Segment:
    """An image that is at hand; `pixels` (3, H, W) float32 in [0, 1]."""
    picture = Picture(lambda: pixels, lambda: hashlib.sha256(pixels.tobytes()).hexdigest()[:32])
    return Segment(picture=picture, supervised=supervised)


def question(text: str) -> Segment:
    """What the user says, up to the point where the answer starts."""
    return Segment(text=f"{USER} {text} {ASSISTANT}")


def answer(text: str) -> Segment:
    """What the model has to say, closed by the end token, which is supervised too."""
    return Segment(text=f"{text} {EOS}", supervised=True)


def said_by_user(pieces: Sequence[str | Picture]) -> tuple[Segment, ...]:
    """A question with images where they stand; those before its first word come before what the user says."""
    first = next((place for place, piece in enumerate(pieces) if isinstance(piece, str)), len(pieces))
    ahead = tuple(Segment(picture=piece) for piece in pieces[:first] if isinstance(piece, Picture))
    rest = pieces[first:]
    if len(rest) < 2:
        return *ahead, question(str(rest[0]) if rest else "")
    within = [Segment(text=piece) if isinstance(piece, str) else Segment(picture=piece) for piece in rest]
    opened = Segment(text=f"{USER} {rest[0]}")
    if isinstance(rest[-1], str):
        return *ahead, opened, *within[1:-1], Segment(text=f"{rest[-1]} {ASSISTANT}")
    return *ahead, opened, *within[1:], Segment(text=ASSISTANT)
