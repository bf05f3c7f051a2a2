"""Shape letters, and what each role takes and gives.

Letters, the same in every docstring:
    B batch          H, W pixels           N encoder tokens      M connector tokens
    T sequence       P cached positions    V vocabulary
    D_v encoder width                      D width of the language model
    S positions of a drawn image           I images of a row     J images to draw

Every part promises, and `tests/components` asks of every file:
    - a row of the batch depends on that row only;
    - masks are bool and True means real;
    - the counts it declares are the counts it gives;
    - no `no_grad`, no freezing and no seeding: trainability is the recipe's;
    - dtype and device follow the input, and a state dict round-trips strictly.

Positional parameters of a constructor are widths and counts that composition knows; keyword-only ones are
the part's own configuration, each with a default and one of the annotations int, float, bool, str, list,
dict, Literal[...] or a union of these with None. A constructor refuses an impossible combination with a
ValueError of one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Seen:
    """A position sees those of its own sample at or before it, and all of a block that it belongs to.

    Attributes:
        sample: (B, T) int64, the sample of each position; padding is -1 and sees padding alone.
        block: (B, T) int64, the block of each position, counted from 1 in every sample; 0 for none.
    """

    sample: Tensor
    block: Tensor | None = None

    def dense(self) -> Tensor:
        """As a mask, bool (B, T, T)."""
        same = self.sample.unsqueeze(2) == self.sample.unsqueeze(1)
        seen = same.tril()
        if self.block is None:
            return seen
        block = self.block.unsqueeze(2)
        return seen | (same & (block == self.block.unsqueeze(1)) & (block > 0))


class Encoder(Protocol):
    """`Encoder(image_size, *, ...)`: pixels to tokens. It normalises the pixels itself.

    An encoder that is trained together with an image decoder (vq, vae) also has `autoencode`: pixels
    (B, 3, H, W) to tokens as `__call__` gives them and a loss (B,) of its own (commitment, KL). One with
    discrete codes has `codebook`, a tensor (K, D_v), and all its tokens are rows of it.
    """

    dim: int  # D_v
    num_tokens: int  # N
    grid: tuple[int, int] | None  # rows and columns when tokens are in raster order, else None
    image_size: int  # H = W

    def __call__(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v)."""
        ...


class Connector(Protocol):
    """`Connector(dim_in, dim_out, num_tokens_in, *, ...)`: encoder tokens to tokens of the language model.

    One that reads the question too has `reads_text = True`, and is called with embeddings of text (B, L, D)
    and their mask (B, L) as well. One that maps every token by itself has `per_token = True`, and takes the
    number of the first token as a second argument, so that tokens may come one after the other. One with
    discrete codes has `codebook` and `autoencode`, as an encoder. One that begins with averaging over tokens
    that has no parameters has `pooled`: tokens (B, N, D_v) to fewer (B, n, D_v), which it takes as well as
    the tokens themselves and makes the same of, so that features may be pooled before they are stored.
    """

    num_tokens: int  # M

    def __call__(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D_v) to (B, M, D)."""
        ...


class TextDecoder(Protocol):
    """`TextDecoder(vocab_size, *, ...)`: a causal language model that is fed embeddings.

    One in which nothing but masks and positions says what a position sees has `packs = True`: several samples
    may then share a row, and its mask may be a `Seen`.
    """

    dim: int  # D
    vocab_size: int  # V

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The transformer's blocks, each called with hidden states (B, T, D) first."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Look up ids (B, T) as embeddings (B, T, D)."""
        ...

    def __call__(
        self,
        embeds: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Map embeddings (B, T, D) to hidden states (B, T, D) after the final norm.

        `mask` (B, T) says which positions are real; with a cache of P positions it covers both, (B, P + T).
        A mask (B, T, P + T) says instead which positions each one sees, causal or not.
        `positions` (B, T) overrides the positions that follow from the mask.
        `wanted` (K,) are all of the B * T positions whose states matter, counted over rows; the others' may
        be anything.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Score hidden states (..., D) over the vocabulary, (..., V)."""
        ...

    def new_cache(self) -> Any:
        """Make an empty key-value cache that `__call__` fills in place; `crop(length)` shortens it."""
        ...

    def adapter_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """List the named parameters of adapters such as LoRA; empty when there are none."""
        ...


class Fusion(Protocol):
    """`Fusion(dim, num_layers, num_tokens, *, ...)`: how visual tokens enter the language model.

    The arguments are D, the language model's blocks, and M. With `in_sequence` the tokens take positions of
    the sequence and the part has nothing to do in the blocks. Otherwise its own layers, hooked to the blocks
    by `attach`, read the tokens while `reading` is open; at the start they leave the language model's
    function exactly as it was.
    """

    in_sequence: bool
    bidirectional: bool  # in sequence: whether the positions of one image see each other
    one_position: bool  # in sequence: whether all tokens of an image stand at one position
    dim_visual: int  # width of the visual tokens it takes

    def attach(self, layers: Sequence[nn.Module]) -> None:
        """Hook this part's layers to the language model's blocks; called once."""
        ...

    def reading(self, tokens: Tensor, image: Tensor) -> AbstractContextManager[None]:
        """While open, runs of the language model read visual tokens (B, I, M, dim_visual).

        `image` (B, T) int64 says for every position of the run which of the row's images is the last one
        at or before it, -1 for none.
        """
        ...


class VisualHead(Protocol):
    """`VisualHead(dim, dim_target, num_tokens, *, ...)`: hidden states to visual targets and back.

    `feedback`, where a head has it: "own" embeds fed-back tokens by itself; "shared" leaves that to what
    reads images, the connector or nothing at all, and composition hands it over by `share(embed)`, with
    `embed(tokens, first)` as in `Connector`.
    """

    num_slots: int  # S, positions that a drawn image takes in the sequence
    reads_before: bool  # the state before a slot predicts it (autoregression), or the state at the slot does
    bidirectional: bool  # whether the slots of one image see each other
    through_decoder: bool  # whether the loss is the image decoder's, given `__call__` of the states

    def prepare(self, tokens: Tensor, codebook: Tensor | None) -> None:
        """Learn from a sample of visual tokens (..., D_v) what the targets look like; K codes, if any."""
        ...

    def inputs(self, tokens: Tensor) -> tuple[Tensor, Any]:
        """What the language model reads at the slots in training, (J, S, D), for tokens (J, N, D_v).

        The second value is handed to `loss`: noise, times, or None.
        """
        ...

    def loss(self, states: Tensor, tokens: Tensor, drawn: Any = None) -> Tensor:
        """Compare the states (J, S, D) of an image's slots with its tokens (J, N, D_v): (J,)."""
        ...

    def draw(self, state: Tensor, run: Callable[[Tensor, bool], Tensor], seeds: Sequence[int]) -> Tensor:
        """Draw visual tokens (B, N, D_v).

        `state` (B, 1, D) is the state before the image. `run` lets the language model go on with inputs
        (B, n, D), which see all before them (and each other where the head is bidirectional), and gives
        their states (B, n, D); its second argument says whether the inputs stay in the sequence. `seeds`
        are B numbers: noise of a row follows from its own, whatever the other rows are.
        """
        ...


class ImageDecoder(Protocol):
    """`ImageDecoder(dim_in, num_tokens, image_size, *, ...)`: visual tokens to pixels."""

    def loss(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Compare tokens (B, N, D_v) with pixels (B, 3, H, W) in [0, 1]: one loss per sample, (B,)."""
        ...

    def sample(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw pixels (B, 3, H, W) in [0, 1] for tokens (B, N, D_v), a function of the generator's state."""
        ...
