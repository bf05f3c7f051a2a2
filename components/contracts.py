"""Shape letters, and what each role takes and gives.

Letters, the same in every docstring:
    B batch          H, W pixels           N encoder tokens      M connector tokens
    T sequence       P cached positions    V vocabulary
    D_v encoder width                      D width of the language model

Every part promises, and `tests/components` asks of every file:
    - a row of the batch depends on that row only;
    - masks are bool and True means real;
    - the counts it declares are the counts it gives;
    - no `no_grad`, no freezing and no seeding: trainability is the recipe's;
    - dtype and device follow the input, and a state dict round-trips strictly.

Positional parameters of a constructor are widths and counts that composition knows; keyword-only ones are
the part's own configuration, each with a default and one of the annotations int, float, bool, str,
Literal[...] or a union of these with None. A constructor refuses an impossible combination with a
ValueError of one line.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Encoder(Protocol):
    """`Encoder(image_size, *, ...)`: pixels to tokens. It normalises the pixels itself."""

    dim: int  # D_v
    num_tokens: int  # N
    grid: tuple[int, int] | None  # rows and columns when tokens are in raster order, else None
    image_size: int  # H = W

    def __call__(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v)."""
        ...


class Connector(Protocol):
    """`Connector(dim_in, dim_out, num_tokens_in, *, ...)`: encoder tokens to tokens of the language model."""

    num_tokens: int  # M

    def __call__(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D_v) to (B, M, D)."""
        ...


class TextDecoder(Protocol):
    """`TextDecoder(vocab_size, *, ...)`: a causal language model that is fed embeddings."""

    dim: int  # D
    vocab_size: int  # V

    def embed(self, ids: Tensor) -> Tensor:
        """Look up ids (B, T) as embeddings (B, T, D)."""
        ...

    def __call__(
        self, embeds: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Map embeddings (B, T, D) to hidden states (B, T, D) after the final norm.

        `mask` (B, T) says which positions are real; with a cache of P positions it covers both, (B, P + T).
        `positions` (B, T) overrides the positions that follow from the mask.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Score hidden states (..., D) over the vocabulary, (..., V)."""
        ...

    def new_cache(self) -> Any:
        """Make an empty key-value cache that `__call__` fills in place."""
        ...

    def adapter_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """List the named parameters of adapters such as LoRA; empty when there are none."""
        ...


class VisualHead(Protocol):
    """`VisualHead(dim, dim_target, num_tokens, *, ...)`: hidden states to visual targets and back."""

    num_tokens: int  # N

    def standardise(self, tokens: Tensor) -> None:
        """Learn the scale of the targets from a sample of visual tokens (..., D_v)."""
        ...

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Map visual tokens (B, n, D_v), from number `first` on, to the language model's inputs (B, n, D)."""
        ...

    def __call__(self, states: Tensor) -> Tensor:
        """Predict visual tokens (B, n, D_v) from the states before them (B, n, D)."""
        ...

    def loss(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Compare the states before an image's tokens (B, N, D) with the tokens (B, N, D_v): (B,)."""
        ...


class ImageDecoder(Protocol):
    """`ImageDecoder(dim_in, num_tokens, image_size, *, ...)`: visual tokens to pixels."""

    def loss(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Compare tokens (B, N, D_v) with pixels (B, 3, H, W) in [0, 1]: one loss per sample, (B,)."""
        ...

    def sample(self, tokens: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw pixels (B, 3, H, W) in [0, 1] for tokens (B, N, D_v), a function of the generator's state."""
        ...
