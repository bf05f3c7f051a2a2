"""Learned queries that read the image by cross-attention in BERT blocks: the connector of BLIP-2.

Paper: BLIP-2, arXiv:2301.12597, section 3.1; with `instruction`: InstructBLIP, arXiv:2305.06500, section 2.3
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import cast

import torch
from torch import Tensor, nn

from components.layers.q_former import EPSILON, QFormerBlock, TextMlp

__all__ = ["QFormer"]


class QFormer(nn.Module):
    """A fixed number of tokens, whatever the encoder gives.

    The query branch of BLIP-2's Q-Former with its layer norm on the image's tokens. Blocks are post-norm;
    every `cross_attention_frequency`-th one, from the first, attends to the image.

    With `instruction` the queries see the question as well and read the image for it: one sequence of queries
    and text with shared self-attention, MLPs of their own for the text, which does not attend to the image,
    and only the queries go out.

    BLIP-2's first stage (`lab.models.representation`) trains this module through `run` and adds what only
    that stage has: words, the text's MLPs as far as `instruction` does not have them, and the heads. So
    weights go from stage to stage unchanged; `project`, `project_text` and `text_positions` take no part in
    the first.

    Args:
        dim_in: width of the encoder's tokens, D_v.
        dim_out: width of the language model, D.
        num_tokens_in: encoder tokens, N.
        num_queries: tokens given to the language model, M.
        dim: width of the blocks.
        depth: blocks; being post-norm, four learn markedly slower from scratch than two.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP, relative to `dim`.
        cross_attention_frequency: blocks between two that attend to the image.
        positions: add a learned position to each image token, so that queries can tell places apart at once.
            BLIP-2 has none: there the order of the tokens does not matter, and a small model trained from
            scratch binds things to their places much later.
        instruction: read the question too.
        max_text: longest question, in tokens of the language model; counts with `instruction` only.

    Shapes: tokens (B, N, D_v), with `instruction` text (B, L, D) and its mask (B, L) -> (B, M, D).
    """

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
        mlp_ratio: float = 2.0,
        cross_attention_frequency: int = 2,
        positions: bool = True,
        instruction: bool = False,
        max_text: int = 128,
    ) -> None:
        super().__init__()
        self.num_tokens, self.dim, self.reads_text = num_queries, dim, instruction
        self.norm_image = nn.LayerNorm(dim_in)
        # as large as the normalised tokens they are added to
        self.positions = nn.Parameter(torch.randn(1, num_tokens_in, dim_in)) if positions else None
        # small, so that the optimiser's steps turn them quickly; the norm that follows undoes the scale
        self.queries = nn.Parameter(torch.randn(1, num_queries, dim) * 0.02)
        self.norm_queries = nn.LayerNorm(dim, EPSILON)
        self.blocks = nn.ModuleList(
            QFormerBlock(
                dim, dim_in if index % cross_attention_frequency == 0 else None, num_heads, mlp_ratio
            )
            for index in range(depth)
        )
        self.project = nn.Linear(dim, dim_out)
        self.text_mlps = nn.ModuleList()
        if instruction:
            # no bias, which would outweigh embeddings as small as language models have
            self.project_text = nn.Linear(dim_out, dim, bias=False)
            self.text_positions = nn.Parameter(torch.randn(max_text, dim) * 0.02)
            # the last block's text goes nowhere
            self.text_mlps.extend(self.further_text_mlps()[:-1])

    def forward(self, tokens: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D_v) to (B, M, D), with `instruction` for a question.

        Args:
            tokens: the image, (B, N, D_v).
            text: the question's embeddings in the language model, (B, L, D).
            text_mask: which of its positions are real, (B, L), wherever the padding stands; all by default.

        Raises:
            ValueError: text that is not read or missing, or longer than `max_text`.
        """
        if text is None:
            if self.reads_text:
                raise ValueError("instruction: the question's embeddings are missing")
            return self.project(self.run(tokens))  # (B, M, dim) -> (B, M, D)
        if not self.reads_text:
            raise ValueError("reads no text; 'instruction: true' does")
        if text.shape[1] > len(self.text_positions):
            raise ValueError(f"{text.shape[1]} tokens of text, but max_text is {len(self.text_positions)}")
        if text_mask is None:
            text_mask = text.new_ones(text.shape[:2], dtype=torch.bool)
        place = (text_mask.long().cumsum(1) - 1).clamp(min=0)  # (B, L)
        text = self.project_text(text) + self.text_positions[place]  # (B, L, D) -> (B, L, dim)
        seen = torch.cat([text_mask.new_ones(len(text), self.num_tokens), text_mask], dim=1)  # (B, M + L)
        return self.project(self.run(tokens, text, seen.unsqueeze(1), self.text_mlps))

    def run(
        self,
        tokens: Tensor | None,
        text: Tensor | None = None,
        mask: Tensor | None = None,
        text_mlps: Sequence[nn.Module] | nn.ModuleList = (),
    ) -> Tensor:
        """Run the blocks over queries, text, or both.

        Args:
            tokens: the image, (B, N, D_v); None to run text alone, without queries (Q = 0 instead of M).
            text: embeddings (B, L, dim) with their positions, before the norm.
            mask: what sees what in the sequence of queries and text, bool that broadcasts to
                (B, Q + L, Q + L); None for everything.
            text_mlps: the text's MLP of each block, from the first on; the text ends where they do.

        Returns:
            States before `project`, (B, Q + L, dim); with an MLP too few for the blocks (B, Q, dim).
        """
        parts, image, num_queries = [], None, 0
        if tokens is not None:
            image, num_queries = self.norm_image(tokens), self.num_tokens
            if self.positions is not None:
                image = image + self.positions
            parts.append(self.norm_queries(self.queries).expand(len(tokens), -1, -1))  # (B, M, dim)
        if text is not None:
            parts.append(self.norm_queries(text))  # (B, L, dim)
        x = torch.cat(parts, dim=1)
        for block, text_mlp in zip_longest(self.blocks, text_mlps):
            x = block(x, image, num_queries, mask, text_mlp)
        return x

    def further_text_mlps(self) -> nn.ModuleList:
        """Make the text's MLPs that blocks still lack, copies of the queries' own."""
        lacking = self.blocks[len(self.text_mlps) :]
        return nn.ModuleList(TextMlp(cast(QFormerBlock, block)) for block in lacking)
