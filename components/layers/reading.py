"""Visual tokens that layers hooked to the blocks of a language model read while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Reading", "chosen"]


class Reading(nn.Module):
    """What fusions outside the sequence share: the tokens of the run at hand, and nothing outside a run.

    Hooks are bound methods of the fusion or of its parts, never closures, so that copies and pickles of a
    whole model are hooked to themselves. The language model's blocks never become submodules of a fusion.

    Args:
        num_layers: the language model's blocks.
        dim_visual: width of the visual tokens.
    """

    in_sequence = False
    bidirectional = False
    one_position = False

    def __init__(self, num_layers: int, dim_visual: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.dim_visual = dim_visual
        self._run: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def reading(self, tokens: Tensor, image: Tensor) -> Iterator[None]:
        """While open, runs of the language model read visual tokens (B, I, M, dim_visual).

        Outside, the language model is as it was before `attach`. Learned layers and prompts act on text too,
        so rows without any image belong inside as well, with I = 0 where no row has one: otherwise a row of
        text would come out differently beside a row with an image.

        Args:
            tokens: (B, I, M, dim_visual); rows with fewer than I images are filled up with any finite values.
            image: (B, T) int64, for every position of the run (without those in the cache) which of the
                row's images is the last one at or before it; -1 for none.
        """
        with self._open((tokens, image)):
            yield

    def again(self) -> AbstractContextManager[None]:
        """What the run at hand reads, to be opened later, when a block is run a second time."""
        return self._open(self._run)

    @contextmanager
    def _open(self, run: tuple[Tensor, Tensor] | None) -> Iterator[None]:
        before, self._run = self._run, run
        try:
            yield
        finally:
            self._run = before

    def read(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Give tokens and image numbers for a block's hidden states (B, T, D); None while nothing is read.

        Raises:
            ValueError: the image numbers are of a run of another size.
        """
        if self._run is not None and self._run[1].shape != x.shape[:2]:
            raise ValueError(f"image numbers {tuple(self._run[1].shape)} for a run of {tuple(x.shape[:2])}")
        return self._run

    def check_layers(self, layers: Sequence[nn.Module]) -> None:
        """Refuse blocks of another number than this part was built for.

        Raises:
            ValueError: they differ.
        """
        if len(layers) != self.num_layers:
            raise ValueError(f"built for {self.num_layers} blocks of the language model, not {len(layers)}")


def chosen(number: Tensor, count: int) -> Tensor:
    """Tell for each position (B, T) which one of `count` things it reads: bool (B, T, count)."""
    return number.unsqueeze(-1) == torch.arange(count, device=number.device)
