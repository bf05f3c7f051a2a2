"""Learned queries in left-to-right order that read the image: the tokenizers of VL-GPT, Emu and SEED.

Paper: VL-GPT, arXiv:2312.09251, section 3.1; Emu, arXiv:2307.05222, section 2.1; with `codes`: SEED,
arXiv:2307.08041, section 3
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.layers.attention import Attention
from components.layers.masked_attention import MaskedAttention

__all__ = ["CausalTransformer"]


class CausalTransformer(nn.Module):
    """Token i follows from the image and the queries up to i, so that tokens can be drawn one by one.

    Pre-norm decoder blocks: causal self-attention among the queries, cross-attention to the image, MLP.

    With `codes` the tokens are discrete: a bottleneck brings each to `code_dim`, the nearest of K codes takes
    its place (gradients pass straight through), and a linear map brings that to D.

    Args:
        dim_in: width of the encoder's tokens, D_v.
        dim_out: width of the language model, D.
        num_tokens_in: encoder tokens, N.
        num_queries: tokens given to the language model, M.
        dim: width of the blocks.
        depth: blocks; VL-GPT and Emu have 12.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP, relative to `dim`.
        positions: add a learned position to each image token. Without, their order does not matter and their
            number is free.
        codes: number of codes, K; 0 for continuous tokens. SEED has 8192.
        code_dim: width of a code; SEED has 32.
        commitment: weight of the term that draws a token to its code, relative to the opposite one.
        restart: batches of training without use after which a code is placed on a token of the batch; the
            first batch places all of them. 0 places none.

    Shapes: tokens (B, N, D_v) -> (B, M, D).

    Raises:
        ValueError: `dim` does not split over the heads, or a single code.
    """

    idle: Tensor

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        num_tokens_in: int,
        *,
        num_queries: int = 16,
        dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        positions: bool = True,
        codes: int = 0,
        code_dim: int = 16,
        commitment: float = 0.25,
        restart: int = 100,
    ) -> None:
        super().__init__()
        if codes < 0 or codes == 1:
            raise ValueError(f"codes must be 0 or at least 2, not {codes}")
        self.num_tokens, self.commitment, self.restart = num_queries, commitment, restart
        self.norm_image = nn.LayerNorm(dim_in)
        # as large as the normalised tokens they are added to
        self.positions = nn.Parameter(torch.randn(1, num_tokens_in, dim_in)) if positions else None
        # small, so that what a query reads soon outweighs what it is
        self.queries = nn.Parameter(torch.randn(1, num_queries, dim) * 0.02)
        self.blocks = nn.ModuleList(_Block(dim, dim_in, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.codes: nn.Parameter | None = None
        if codes:
            self.bottleneck = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, code_dim))
            self.codes = nn.Parameter(torch.randn(codes, code_dim))
            self.register_buffer("idle", torch.full((codes,), restart))
        self.project = nn.Linear(code_dim if codes else dim, dim_out)

    @property
    def codebook(self) -> Tensor | None:
        """The tokens that there are, (K, D); None when tokens are continuous."""
        return None if self.codes is None else self.project(self.codes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D_v) to (B, M, D)."""
        x = self._read(tokens)
        if self.codes is None:
            return self.project(x)  # (B, M, dim) -> (B, M, D)
        return self.project(_straight_through(x, self.codes[self._nearest(x)]))  # -> (B, M, D)

    def autoencode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (B, N, D_v) to (B, M, D), with the loss (B,) of the codes; zeros when there are none.

        In training mode, codes that nothing has used for `restart` calls are placed anew first.
        """
        x = self._read(tokens)
        if self.codes is None:
            return self.project(x), x.new_zeros(len(x))
        if self.training and self.restart:
            self._restart(x.detach().flatten(0, 1))
        code = self.codes[self._nearest(x)]  # (B, M, code_dim)
        loss = (x.detach() - code).square() + self.commitment * (x - code.detach()).square()
        return self.project(_straight_through(x, code)), loss.mean(dim=(1, 2))

    def _read(self, tokens: Tensor) -> Tensor:
        """Tokens (B, M, dim), or (B, M, code_dim) before they are replaced by codes."""
        image = self.norm_image(tokens)
        if self.positions is not None:
            image = image + self.positions
        x = self.queries.expand(len(tokens), -1, -1)  # (1, M, dim) -> (B, M, dim)
        past = x.new_ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()  # (M, M)
        for block in self.blocks:
            x = block(x, image, past)
        x = self.norm(x)
        return x if self.codes is None else self.bottleneck(x)

    def _nearest(self, x: Tensor) -> Tensor:
        """Indices (...) of the codes nearest to x (..., code_dim)."""
        assert self.codes is not None
        return torch.cdist(x.flatten(0, -2), self.codes).argmin(dim=-1).view(x.shape[:-1])

    @torch.no_grad()  # moves codes between steps of the optimiser, as it does
    def _restart(self, x: Tensor) -> None:
        """Move codes that nothing uses any more to some of x (B * M, code_dim)."""
        assert self.codes is not None
        dead = self.idle >= self.restart
        some = x[torch.randint(len(x), (len(self.codes),), device=x.device)]  # (K, code_dim)
        self.codes.copy_(torch.where(dead.unsqueeze(1), some, self.codes))
        self.idle.masked_fill_(dead, 0).add_(1)
        self.idle[self._nearest(x)] = 0


class _Block(nn.Module):
    def __init__(self, dim: int, dim_image: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_attend, self.norm_cross = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attend = MaskedAttention(dim, dim, num_heads)
        self.cross = Attention(dim, dim_image, num_heads)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, image: Tensor, past: Tensor) -> Tensor:
        queries = self.norm_attend(x)
        x = x + self.attend(queries, queries, past)
        x = x + self.cross(self.norm_cross(x), image)
        return x + self.mlp(x)


def _straight_through(x: Tensor, code: Tensor) -> Tensor:
    """The code, with gradients to x as if it were x."""
    return code.detach() + (x - x.detach())
