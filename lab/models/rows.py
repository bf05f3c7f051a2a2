"""The language model over the rows of a layout, in which each sample gets the states that it has alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from components.contracts import Seen, TextDecoder
from lab.samples.layout import Layout, Rows


@dataclass(frozen=True)
class Rule:
    """What each position of a batch sees, and where it stands.

    Attributes:
        block: (B, T) as in `Seen`; None where everything is causal.
        positions: (B, T), as each sample counts them.
        in_order: whether these are 0, 1, 2, ... in every sample.
    """

    block: Tensor | None
    positions: Tensor
    in_order: bool = True


def laid_out(
    decoder: TextDecoder,
    embeds: Tensor,
    layout: Layout,
    rule: Rule,
    reading: Callable[[Rows], AbstractContextManager[None]] = lambda rows: nullcontext(),
) -> Tensor:
    """Hidden states (B, T, D) of embeddings (B, T, D), called as the layout says.

    Padding gets any, and so do, where the layout says which are wanted, all others.

    Args:
        decoder: the language model.
        embeds: of the batch as it was collated.
        layout: of this batch.
        rule: who sees whom.
        reading: open while the rows are run.
    """
    flat = embeds.flatten(0, 1)  # (B * T, D)
    found = []
    for rows in layout.rows:
        mask, positions = _seen(decoder, rows, rule, embeds.is_cuda)
        with reading(rows):
            states = decoder(flat[rows.place], mask, positions, wanted=rows.wanted)  # type: ignore[arg-type]
            found.append(states.flatten(0, 1))
    return torch.cat(found)[layout.back].view_as(embeds)


def _seen(
    decoder: TextDecoder, rows: Rows, rule: Rule, ask_nothing: bool
) -> tuple[Tensor | Seen | None, Tensor | None]:
    """Mask and positions of a call.

    Rows of one sample need no mask: what is real comes first. On a GPU they get one even so where the model
    packs: to find that it needs none transformers would look at the device's numbers, and wait for them.
    """
    packs = getattr(decoder, "packs", False)
    if rows.alone and rule.block is None and not (ask_nothing and packs):
        if rule.in_order:
            return None, None
        return rows.sample >= 0, rule.positions.flatten()[rows.place]
    block = None if rule.block is None else rule.block.flatten()[rows.place]
    seen = Seen(rows.sample, block)
    return seen if packs else seen.dense(), rule.positions.flatten()[rows.place]


def positions_of(mask: Tensor) -> Tensor:
    """Positions (B, T) that count True elements only."""
    return (mask.long().cumsum(dim=1) - 1).clamp_min(0)
