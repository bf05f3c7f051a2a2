"""A sample is a list of segments. Every task, from captioning to editing, is this one type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
IMAGE_START, IMAGE_END = "<image_start>", "<image_end>"
USER, ASSISTANT = "<user>", "<assistant>"
SPECIAL_TOKENS = (PAD, BOS, EOS, IMAGE_START, IMAGE_END, USER, ASSISTANT)


@dataclass(frozen=True)
class Segment:
    """A piece of a sample: either text or an image.

    Attributes:
        text: words, special tokens included; None for an image.
        pixels: (3, H, W) float32 in [0, 1]; None for text.
        supervised: whether the model learns to produce this segment.
    """

    text: str | None = None
    pixels: np.ndarray | None = None
    supervised: bool = False

    def __post_init__(self) -> None:
        if (self.text is None) == (self.pixels is None):
            raise ValueError("a segment holds either text or an image")


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
    """An image; `pixels` (3, H, W) float32 in [0, 1]."""
    return Segment(pixels=pixels, supervised=supervised)


def question(text: str) -> Segment:
    """What the user says, up to the point where the answer starts."""
    return Segment(text=f"{USER} {text} {ASSISTANT}")


def answer(text: str) -> Segment:
    """What the model has to say, closed by the end token, which is supervised too."""
    return Segment(text=f"{text} {EOS}", supervised=True)
