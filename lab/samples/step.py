"""What a step is on: one batch or several parts of it, laid out for the language model, elements weighed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lab.samples.batch import Batch, mapped
from lab.samples.layout import Word, lay_out


@dataclass(frozen=True)
class Parts:
    """A step's samples in batches whose gradients are summed: what one batch of all of them would give."""

    parts: tuple[Any, ...]

    @property
    def sample_ids(self) -> tuple[str, ...]:
        return tuple(one for part in self.parts for one in getattr(part, "sample_ids", ()))

    def to(self, device: torch.device | str) -> Parts:
        """The parts on another device."""
        return Parts(tuple(part.to(device) for part in self.parts))

    def pin_memory(self) -> Parts:
        """The parts in memory from which a GPU takes them while the host goes on."""
        return Parts(mapped(self.parts, Tensor.pin_memory))


def parts_of(batch: Any) -> tuple[Any, ...]:
    """The parts of a step; a batch is its only part."""
    return batch.parts if isinstance(batch, Parts) else (batch,)


LONG = 128  # tokens of a batch's longest sample above which states are spared; shorter ones keep their bits


@dataclass(frozen=True)
class Plan:
    """Which layout a batch gets. "auto" packs, or forms groups where that is not possible or too dear.

    Attributes:
        word: "auto" or a layout.
        budget: of a packed row, in tokens, as in `pack`.
        longest: "auto" packs batches whose samples have at most so many tokens; None for any.
        packs: whether the model allows samples to share a row.
        groups: whether the model may be called any number of times in a step.
        as_is: whether "padded" leaves the batch as it was collated, mask and all.
        sparing: whether the language model spares itself states that no loss reads, in batches whose longest
            sample has more than `LONG` tokens and whose samples do not share rows.
    """

    word: Literal["auto", "padded", "buckets", "packed"] = "padded"
    budget: int = 1
    longest: int | None = None
    packs: bool = True
    groups: bool = True
    as_is: bool = True
    sparing: bool = False

    def layout_of(self, batch: Batch) -> Word:
        """The layout of a batch, a function of the lengths of its samples alone."""
        if self.word != "auto":
            return self.word
        short = self.longest is None or int(batch.mask.sum(dim=1).max()) <= self.longest
        if self.packs and (short or not self.groups):
            return "packed"
        return "buckets" if self.groups else "padded"

    def __call__(self, batch: Batch) -> Batch:
        word = self.layout_of(batch)
        sparing = self.sparing and word != "packed" and batch.ids.shape[1] > LONG
        if word == "padded" and self.as_is and not sparing:
            return batch
        return lay_out(batch, word, self.budget, sparing)


class StepCollate:
    """Collates a step.

    Args:
        collate: samples to batch.
        parts: how many the samples of a step are divided into, in order.
        plan: of layouts, for batches of a language model.
        by_sample: every sample with supervised text counts the same, however long it is.
    """

    def __init__(
        self, collate: Callable[[Sequence[Any]], Any], parts: int, plan: Plan, by_sample: bool
    ) -> None:
        self.collate, self.parts, self.plan, self.by_sample = collate, parts, plan, by_sample

    def __call__(self, samples: Sequence[Any]) -> Any:
        size = -(-len(samples) // self.parts)
        found = [self._part(samples[first : first + size]) for first in range(0, len(samples), size)]
        return found[0] if self.parts == 1 else Parts(tuple(found))

    def _part(self, samples: Sequence[Any]) -> Any:
        batch = self.collate(samples)
        if not isinstance(batch, Batch):
            return batch
        if self.by_sample:
            batch = replace(batch, weights=each_sample_alike(batch))
        return self.plan(batch)


def each_sample_alike(batch: Batch) -> Tensor:
    """Weights (K,) of supervised elements that sum to one in every sample."""
    row = batch.places.supervised // batch.ids.shape[1]  # (K,)
    return 1 / torch.bincount(row, minlength=len(batch))[row].float()
