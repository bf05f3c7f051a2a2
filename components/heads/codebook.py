"""Classification of discrete visual tokens over a codebook, one after the other in raster order.

Paper: SEED, arXiv:2307.08041, section 3; CM3Leon, arXiv:2309.02591, section 2; Chameleon, arXiv:2405.09818,
section 2; Emu3, arXiv:2409.18869, section 2

The papers let one vocabulary hold words and codes and mask one of them when decoding. Here the codes have a
head of their own, as in Janus (arXiv:2410.13848): the same draws, and a loss without the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.layers.autoregression import Autoregression

__all__ = ["Codebook"]


class Codebook(Autoregression):
    """Scores the codes of the encoder's or the connector's codebook with a linear layer and samples one.

    Args:
        dim: width of the language model, D.
        dim_target: width of a visual token, D_v.
        num_tokens: visual tokens of an image, N.
        codes: K, as many as the codebook has.
        temperature: of sampling; 0 takes the most likely code.
        top_k: sample from so many of the most likely codes; 0 for all.
        z_loss: weight of the squared log-partition function, which keeps scores from drifting (Chameleon).
        feedback: "own" embeds fed-back codes with a table; "shared" hands their vectors to what reads images.
        hide: share of images all of whose fed-back tokens are replaced by a learned vector in training, so
            that the prompt alone has to do; the others hide a random share of them, drawn uniformly. The
            papers hide none.
        positions: add a learned position to each fed-back token; the papers have none.
    """

    codebook: Tensor

    def __init__(
        self,
        dim: int,
        dim_target: int,
        num_tokens: int,
        *,
        codes: int = 1024,
        temperature: float = 1.0,
        top_k: int = 0,
        z_loss: float = 0.0,
        feedback: Literal["own", "shared"] = "own",
        hide: float = 0.5,
        positions: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= top_k <= codes:
            raise ValueError(f"top_k {top_k} is not between 0 and codes {codes}")
        self.temperature, self.top_k, self.z_loss = temperature, top_k, z_loss
        self.register_buffer("codebook", torch.zeros(codes, dim_target))
        self.score = nn.Linear(dim, codes)
        own = nn.Embedding(codes, dim) if feedback == "own" else None
        self.feed_back(own, dim, num_tokens, hide, positions)

    @torch.no_grad()
    def prepare(self, tokens: Tensor, codebook: Tensor | None) -> None:
        """Copy the codebook (K, D_v).

        Raises:
            ValueError: there is none, or one of another shape.
        """
        if codebook is None:
            raise ValueError("needs an encoder or a connector with a codebook")
        if codebook.shape != self.codebook.shape:
            expected, given = (" x ".join(map(str, c.shape)) for c in (self.codebook, codebook))
            raise ValueError(f"expected a codebook of {expected} (codes x width), not of {given}")
        self.codebook.copy_(codebook)

    def ids(self, tokens: Tensor) -> Tensor:
        """Find the code nearest to each token (B, n, D_v): int64 (B, n)."""
        # with matrix products a code would not be at distance 0 from itself
        distance = torch.cdist(tokens, self.codebook, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.argmin(dim=-1)

    def feed(self, tokens: Tensor, first: int) -> Tensor:
        return super().feed(tokens if self.feedback == "shared" else self.ids(tokens), first)

    def loss(self, states: Tensor, tokens: Tensor, drawn: None = None) -> Tensor:
        """Cross-entropy of each image (J,) from the states before its tokens (J, N, D), per token."""
        logits = self.score(states)  # (J, N, D) -> (J, N, K)
        entropy = F.cross_entropy(logits.transpose(1, 2), self.ids(tokens), reduction="none")  # (J, N)
        return (entropy + self.z_loss * logits.logsumexp(dim=-1).square()).mean(dim=1)

    def draw_token(self, state: Tensor, rows: Sequence[torch.Generator]) -> Tensor:
        logits = self.score(state[:, 0])  # (B, K)
        if self.top_k:
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.temperature == 0:
            ids = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
        else:
            chances = (logits / self.temperature).softmax(dim=-1).cpu()  # where the generators are
            drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(chances, rows, strict=True)]
            ids = torch.stack(drawn).to(logits.device)  # (B, 1)
        return self.codebook[ids]  # (B, 1) -> (B, 1, D_v)
