"""Samples to tensors: one layout for training, teacher-forced evaluation and generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.errors import LabError
from lab.samples.chat import Run
from lab.samples.features import Features
from lab.samples.layout import Layout
from lab.samples.segments import IMAGE_END, IMAGE_START, PAD, Picture, Sample
from lab.samples.tokenizer import Tokenizer


@dataclass(frozen=True)
class Places:
    """Where things stand in a batch, as indices: known on the host, so that no device is asked for them.

    A place is a position of the batch counted over its rows, row * T + column.

    Attributes:
        supervised: (K,) text elements that the model has to produce.
        read: (I * M,) visual tokens of images read.
        drawn: (J * S,) slots of images drawn.
        owner: (J,) the row of each image drawn.
        images: (B, I_max) which of the images read are a row's, in order; 0 where it has no more.
    """

    supervised: Tensor
    read: Tensor
    drawn: Tensor
    owner: Tensor
    images: Tensor

    @classmethod
    def of(
        cls, supervised: np.ndarray, read: np.ndarray, drawn: np.ndarray, image: np.ndarray, slots: int
    ) -> Places:
        """Of masks (B, T) and image numbers (B, T); an image drawn takes `slots` places."""
        at = [np.flatnonzero(mask) for mask in (supervised, read, drawn)]
        owner = at[2][:: max(slots, 1)] // drawn.shape[1]
        count = image.max(axis=1) + 1  # (B,)
        within = np.arange(count.max())
        first = (np.cumsum(count) - count)[:, None]
        images = np.where(within < count[:, None], first + within, 0)  # (B, I_max)
        return cls(*(torch.from_numpy(array) for array in (*at, owner, images)))


@dataclass(frozen=True)
class Batch:
    """B rows of T positions. Masks are bool, True means real.

    An image takes `<image_start>`, its visual tokens and `<image_end>`. Images that the model reads are
    marked in `read`, images that it has to draw in `drawn`; both kinds are listed in row-major order. Where
    visual tokens stay outside the sequence (cross-attention), an image that is read takes its marks alone.

    Attributes:
        ids: (B, T) int64; the pad id where a visual token or padding stands.
        mask: (B, T) positions that hold something.
        supervised: (B, T) text elements that the model has to produce (predicted from the position before).
        read: (B, T) visual tokens of images read.
        drawn: (B, T) slots of images drawn.
        image: (B, T) int64, which of the row's images read is the last at or before a position; -1 for none.
        prompt: (I, L) int64, what the user says in the row of each image read, for connectors that read the
            question; padded with the pad id, (I, 0) where no connector asks for it.
        pixels_read: (I, 3, H, W) float32 in [0, 1]; where features are cached, these, (I, N, D_v).
        pixels_drawn: (J, 3, H, W) float32 in [0, 1], or (J, N, D_v) likewise.
        task: (B,) int64, index into `tasks`.
        tasks: names of tasks.
        sample_ids: B names, for logs and errors.
        pad: the pad id.
        places: the masks as indices.
        layout: how the language model gets the rows (see lab/samples/layout.py); None for as they are here.
        weights: (K,) float32, what each supervised element counts in the loss; None for one each.
    """

    ids: Tensor
    mask: Tensor
    supervised: Tensor
    read: Tensor
    drawn: Tensor
    image: Tensor
    prompt: Tensor
    pixels_read: Tensor
    pixels_drawn: Tensor
    task: Tensor
    tasks: tuple[str, ...]
    sample_ids: tuple[str, ...]
    pad: int
    places: Places
    layout: Layout | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt_mask(self) -> Tensor:
        """(I, L) real positions of `prompt`."""
        return self.prompt != self.pad

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return mapped(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in memory from which a GPU takes it while the host goes on."""
        return mapped(self, Tensor.pin_memory)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A dataclass with all its tensors changed, those of dataclasses and tuples within it as well."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(mapped(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {item.name: mapped(getattr(value, item.name), change) for item in fields(value)}
        return replace(value, **changed)
    return value


class Stand(IntEnum):
    """What stands at a position of a sample."""

    TEXT = 0
    READ = 1
    DRAWN = 2


@dataclass(frozen=True)
class Laid:
    """A sample as a row.

    Attributes:
        ids: the pad id where a visual token stands.
        supervised: whether the model has to produce the element.
        stands: what each position holds.
        image: which of its images read is the last at or before a position, -1 for none.
    """

    ids: Sequence[int]
    supervised: Sequence[bool]
    stands: Sequence[Stand]
    image: Sequence[int]


class Collate:
    """Lays samples out as a `Batch`.

    Args:
        tokenizer: text to ids.
        tokens_read: positions of an image that is read: M, or 0 where its tokens stay outside the sequence.
        tokens_drawn: S, positions of an image that is drawn (the visual head says how many).
        tasks: names of all tasks that may occur.
        left: pad on the left (for generation) instead of the right.
        prompts: whether the batch carries what the user says, for a connector that reads it.
        features: cached, which stand for pixels; no image is then read or rendered.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens_read: int,
        tokens_drawn: int,
        tasks: Sequence[str],
        left: bool = False,
        prompts: bool = False,
        features: Features | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.tokens_read = tokens_read
        self.tokens_drawn = tokens_drawn
        self.tasks = tuple(tasks)
        self.left, self.prompts, self.features = left, prompts, features
        self._pad, self._start, self._end = (tokenizer[token] for token in (PAD, IMAGE_START, IMAGE_END))

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        rows = [self.lay(sample) for sample in samples]
        length = max(len(row.ids) for row in rows)
        shape = (len(rows), length)
        ids = np.full(shape, self._pad, np.int64)
        mask, supervised, stands = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, np.int8)
        image = np.full(shape, -1, np.int64)
        for index, row in enumerate(rows):
            place = slice(length - len(row.ids), None) if self.left else slice(0, len(row.ids))
            ids[index, place], mask[index, place] = row.ids, True
            supervised[index, place], stands[index, place] = row.supervised, row.stands
            image[index, place] = row.image
        images = [
            (segment.picture, segment.supervised)
            for sample in samples
            for segment in sample.segments
            if segment.picture is not None
        ]
        read, drawn = stands == Stand.READ, stands == Stand.DRAWN
        return Batch(
            ids=torch.from_numpy(ids),
            mask=torch.from_numpy(mask),
            supervised=torch.from_numpy(supervised),
            read=torch.from_numpy(read),
            drawn=torch.from_numpy(drawn),
            image=torch.from_numpy(image),
            prompt=self._prompts(samples),
            pixels_read=images_of([picture for picture, drawn in images if not drawn], self.features),
            pixels_drawn=images_of([picture for picture, drawn in images if drawn], self.features),
            task=torch.tensor([self.tasks.index(sample.task) for sample in samples]),
            tasks=self.tasks,
            sample_ids=tuple(sample.id for sample in samples),
            pad=self._pad,
            places=Places.of(supervised, read, drawn, image, self.tokens_drawn),
        )

    def length(self, sample: Sample) -> int:
        """Positions that a sample takes, its visual tokens included; no image is read for it."""
        return len(self.lay(sample).ids)

    def _prompts(self, samples: Sequence[Sample]) -> Tensor:
        """(I, L) ids of what the user says, a row for every image that is read."""
        rows = []
        for sample in samples if self.prompts else ():
            read = sum(segment.picture is not None and not segment.supervised for segment in sample.segments)
            rows += [self.tokenizer.chat.said(sample.segments)] * read
        table = np.full((len(rows), max(map(len, rows), default=0)), self._pad, np.int64)
        for index, row in enumerate(rows):
            table[index, : len(row)] = row
        return torch.from_numpy(table)

    def lay(self, sample: Sample) -> Laid:
        """A sample as a row without padding; no image is read for it.

        Raises:
            LabError: it starts with what it has to produce.
        """
        image = -1
        images: list[int] = []
        ids: list[int] = []
        supervised: list[bool] = []
        stands: list[Stand] = []
        for piece in self.tokenizer.chat.lay_out(sample.segments):
            if isinstance(piece, Run):
                ids += piece.ids
                supervised += piece.supervised
                stands += [Stand.TEXT] * len(piece.ids)
            else:
                count = self.tokens_drawn if piece.supervised else self.tokens_read
                image += not piece.supervised
                ids += [self._start, *([self._pad] * count), self._end]
                supervised += [piece.supervised, *([False] * count), piece.supervised]
                inner = Stand.DRAWN if piece.supervised else Stand.READ
                stands += [Stand.TEXT, *([inner] * count), Stand.TEXT]
            images += [image] * (len(ids) - len(images))
        if supervised[:1] == [True]:
            raise LabError(f"sample {sample.id}: nothing stands before its first element to predict it from")
        return Laid(ids, supervised, stands, images)


def images_of(pictures: Sequence[Picture], features: Features | None = None) -> Tensor:
    """Pixels (I, 3, H, W) float32 in [0, 1]; where features are cached, these (I, N, D_v), and no pixels."""
    if not pictures:
        return torch.zeros(0, 3, 1, 1)
    if features is not None:
        return features([picture.key for picture in pictures])
    return torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
