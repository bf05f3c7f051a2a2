"""Gated cross-attention dense blocks between the blocks of a language model that may stay frozen.

Paper: Flamingo, arXiv:2204.14198, section 3.2; "gelu", and where blocks stand: OpenFlamingo, arXiv:2308.01390
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.layers.reading import Reading, chosen

__all__ = ["CrossAttention"]


class CrossAttention(Reading):
    """Every n-th block is preceded by one that attends to the last image and has an MLP of its own.

    Both branches are added times the tanh of a scalar that starts at 0, so that at first the language model
    is unchanged. A position reads the tokens of its own image alone; earlier images reach it through the
    language model. Before the first image the attention adds exactly zero, while the MLP acts everywhere.
    Keys and values are not normalised: a connector that ends in a norm, such as a resampler, suits best.

    Args:
        dim: width of the language model, D.
        num_layers: its blocks.
        num_tokens: tokens of an image, M.
        every: blocks from one insertion to the next; the first stands before block number `every`, counted
            from 1.
        head_dim: width of an attention head.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP, relative to `dim`.
        activation: of the MLP: "squared_relu" as Flamingo has it, or OpenFlamingo's "gelu".
        dim_visual: width of the visual tokens; D if left out.

    Shapes: tokens (B, I, M, dim_visual), image (B, T) -> hidden states (B, T, D) of a hooked block.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_tokens: int,
        *,
        every: int = 2,
        head_dim: int = 32,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        activation: Literal["squared_relu", "gelu"] = "squared_relu",
        dim_visual: int | None = None,
    ) -> None:
        if not 1 <= every <= num_layers:
            raise ValueError(f"every {every} is not between 1 and the language model's {num_layers} blocks")
        super().__init__(num_layers, dim if dim_visual is None else dim_visual)
        self.every = every
        self.blocks = nn.ModuleList(
            _Block(dim, self.dim_visual, head_dim, num_heads, int(dim * mlp_ratio), activation)
            for _ in range(num_layers // every)
        )

    def attach(self, layers: Sequence[nn.Module]) -> None:
        """Run this part's blocks before those of the language model.

        Raises:
            ValueError: not the number of blocks this part was built for.
        """
        self.check_layers(layers)
        for index in range(len(self.blocks)):
            before = partial(self._before, index)
            layers[(index + 1) * self.every - 1].register_forward_pre_hook(before)

    def _before(self, index: int, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if (run := self.read(args[0])) is None:
            return None
        return self.blocks[index](args[0], *run), *args[1:]


class _Block(nn.Module):
    """Pre-norm cross-attention without biases, then a pre-norm MLP, each behind a gate."""

    def __init__(
        self, dim: int, dim_visual: int, head_dim: int, num_heads: int, hidden: int, activation: str
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, inner, bias=False)
        self.key = nn.Linear(dim_visual, inner, bias=False)
        self.value = nn.Linear(dim_visual, inner, bias=False)
        self.out = nn.Linear(inner, dim, bias=False)
        # the usual deviations make attention all but uniform at widths near 100
        for layer, gain in ((self.query, 2.0), (self.key, 2.0), (self.value, 1.0)):
            nn.init.xavier_normal_(layer.weight, gain)
        # small: what a closed gate learns from is then soon what was learned, not what was drawn at random,
        # or its sign keeps changing and it never opens
        nn.init.normal_(self.out.weight, std=0.03)
        self.gate_attention = nn.Parameter(torch.zeros(1))
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden, bias=False),
            nn.GELU() if activation == "gelu" else _SquaredReLU(),
            nn.Linear(hidden, dim, bias=False),
        )
        nn.init.normal_(cast(nn.Linear, self.mlp[-1]).weight, std=0.03)
        self.gate_mlp = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, tokens: Tensor, image: Tensor) -> Tensor:
        if tokens.shape[1]:
            x = x + self.gate_attention.tanh() * self.attend(x, tokens, image)
        return x + self.gate_mlp.tanh() * self.mlp(x)

    def attend(self, x: Tensor, tokens: Tensor, image: Tensor) -> Tensor:
        """Let x (B, T, D) attend to the tokens (B, I, M, dim_visual) of its image: (B, T, D), ungated."""
        query = self._heads(self.query(self.norm(x)))  # (B, T, D) -> (B, heads, T, head_dim)
        flat = tokens.flatten(1, 2)  # (B, I, M, dim_visual) -> (B, I * M, dim_visual)
        key, value = self._heads(self.key(flat)), self._heads(self.value(flat))
        seen = chosen(image, tokens.shape[1])  # (B, T, I)
        none = ~seen.any(dim=2, keepdim=True)  # (B, T, 1)
        # a softmax over nothing has no value: those positions see everything, and add nothing
        seen = (seen | none).repeat_interleave(tokens.shape[2], dim=2)  # -> (B, T, I * M)
        mixed = functional.scaled_dot_product_attention(query, key, value, seen.unsqueeze(1))
        out = self.out(mixed.transpose(1, 2).flatten(2))  # (B, heads, T, head_dim) -> (B, T, D)
        return out.masked_fill(none, 0.0)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class _SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x).square()
