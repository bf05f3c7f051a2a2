"""A sample is a list of segments. Every task, from captioning to editing, is this one type."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
IMAGE_START, IMAGE_END = "<image_start>", "<image_end>"
USER, ASSISTANT = "<user>", "<assistant>"
SPECIAL_TOKENS = (PAD, BOS, EOS, IMAGE_START, IMAGE_END, USER, ASSISTANT)
Role = Literal["", "system", "user", "assistant"]


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
        text: words; None for an image. What marks turns is not part of it where it has a role: the chat
            template adds that (see lab/samples/chat.py).
        picture: None for text.
        supervised: whether the model learns to produce this segment.
        role: who says it; "" for what is part of no turn.
        ends: whether its turn ends with it, or the document where it has no role.
        verbatim: whether special tokens in its text are special. They are not in texts of data, where whoever
            wrote them would end turns, or open images, that there are not.
    """

    text: str | None = None
    picture: Picture | None = None
    supervised: bool = False
    role: Role = ""
    ends: bool = False
    verbatim: bool = False

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


def special(token: str, role: Role = "") -> Segment:
    """A special token that no template writes: the beginning of a sample, the mark that opens an image."""
    return Segment(text=token, role=role, verbatim=True)


def image(pixels: np.ndarray, supervised: bool = False) -> Segment:
    """An image that is at hand; `pixels` (3, H, W) float32 in [0, 1]."""
    picture = Picture(lambda: pixels, lambda: hashlib.sha256(pixels.tobytes()).hexdigest()[:32])
    return Segment(picture=picture, supervised=supervised)


def system(text: str) -> Segment:
    """What is said to the model before a conversation."""
    return Segment(text=text, role="system", ends=True)


def question(text: str) -> Segment:
    """What the user says, up to the point where the answer starts."""
    return Segment(text=text, role="user", ends=True)


def answer(text: str) -> Segment:
    """What the model has to say, closed by the token that ends its turn, which is supervised too."""
    return Segment(text=text, supervised=True, role="assistant", ends=True)


def told(text: str) -> Segment:
    """An answer that is given, as in an example, and not learned."""
    return Segment(text=text, role="assistant", ends=True)


def part_of_answer(text: str) -> Segment:
    """What the model has to say before it goes on in the same turn, with an image for example."""
    return Segment(text=text, supervised=True, role="assistant")


def end_of_answer() -> Segment:
    """The end of a turn of the model's, after an image."""
    return answer("")


def written(text: str, ends: bool) -> Segment:
    """A text of a document, which is learned; where it `ends`, so is the token that says so. It may be ""."""
    return Segment(text=text, supervised=True, ends=ends)


def said_by_user(pieces: Sequence[str | Picture]) -> tuple[Segment, ...]:
    """A question with images where they stand; those before its first word come before what the user says."""
    first = next((place for place, piece in enumerate(pieces) if isinstance(piece, str)), len(pieces))
    ahead = tuple(Segment(picture=piece) for piece in pieces[:first] if isinstance(piece, Picture))
    rest = pieces[first:]
    last = question(rest[-1]) if rest and isinstance(rest[-1], str) else question("")
    within = rest[:-1] if last.text else rest
    turn = [
        Segment(text=piece, role="user") if isinstance(piece, str) else Segment(picture=piece, role="user")
        for piece in within
    ]
    return *ahead, *turn, last
