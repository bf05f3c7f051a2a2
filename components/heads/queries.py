"""Learned queries whose states are mapped to all visual tokens at once.

Paper: GILL, arXiv:2305.17216, section 3; DreamLLM, arXiv:2309.11499, section 3; NExT-GPT, arXiv:2309.05519,
section 3; MetaQueries, arXiv:2504.06256, section 2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from components.layers.standardised import Standardised

__all__ = ["Queries"]


class Queries(Standardised):
    """The slots hold learned embeddings, read once in causal order; a mapper makes tokens of their states.

    GILL: `num_queries: 8, mapper_dim: 512, mapper_depth: 4, mlp_ratio: 4.0, loss: norm, standardised: false`;
    DreamLLM: `mapper: linear, bias: false, add_input: false, loss: decoder, standardised: false`.

    Args:
        dim: width of the language model, D.
        dim_target: width of a visual token, D_v.
        num_tokens: visual tokens of an image, N.
        num_queries: slots, S.
        mapper: "linear", "mlp" (two layers) and "encoder" (blocks that see all slots, MetaQueries) make one
            token of each slot; "transformer" is an encoder and a decoder with N learned queries (GILL).
        mapper_dim: width of the mapper; of "mlp", its hidden width.
        mapper_depth: blocks of its encoder, and of its decoder.
        num_heads: its attention heads.
        mlp_ratio: hidden width of its blocks' MLP, relative to `mapper_dim`.
        bias: whether "linear" and "mlp" have biases.
        add_input: add a slot's embedding to its state (GILL).
        loss: "mse"; "norm", the mean length of a token's error (GILL); "decoder", the image decoder's loss,
            whose gradient comes back through it (DreamLLM, MetaQueries).
        standardised: whether tokens are standardised per dimension.
    """

    reads_before = False
    bidirectional = False

    def __init__(
        self,
        dim: int,
        dim_target: int,
        num_tokens: int,
        *,
        num_queries: int = 16,
        mapper: Literal["linear", "mlp", "encoder", "transformer"] = "transformer",
        mapper_dim: int = 128,
        mapper_depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        bias: bool = True,
        add_input: bool = True,
        loss: Literal["mse", "norm", "decoder"] = "mse",
        standardised: bool = True,
    ) -> None:
        super().__init__(dim_target, standardised)
        if mapper != "transformer" and num_queries != num_tokens:
            raise ValueError(
                f"mapper {mapper} makes one token of each query, but num_queries {num_queries} is not "
                f"the number of visual tokens {num_tokens}; 'transformer' makes any number"
            )
        if mapper in ("encoder", "transformer") and mapper_dim % num_heads:
            raise ValueError(f"mapper_dim {mapper_dim} is not a multiple of num_heads {num_heads}")
        self.num_slots, self.kind, self.add_input = num_queries, loss, add_input
        self.through_decoder = loss == "decoder"
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, dim))
        self.mapper: nn.Module
        match mapper:
            case "linear":
                self.mapper = nn.Linear(dim, dim_target, bias)
            case "mlp":
                self.mapper = nn.Sequential(
                    nn.Linear(dim, mapper_dim, bias), nn.GELU(), nn.Linear(mapper_dim, dim_target, bias)
                )
            case "encoder":
                hidden = int(mapper_dim * mlp_ratio)
                self.mapper = nn.Sequential(
                    nn.Linear(dim, mapper_dim),
                    *(_encoder_layer(mapper_dim, num_heads, hidden, "gelu") for _ in range(mapper_depth)),
                    nn.LayerNorm(mapper_dim),
                    nn.Linear(mapper_dim, dim_target),
                )
            case "transformer":
                self.mapper = _EncoderDecoder(
                    dim, dim_target, num_tokens, mapper_dim, mapper_depth, num_heads, mlp_ratio
                )

    def inputs(self, tokens: Tensor) -> tuple[Tensor, Any]:
        """Repeat the queries for each image of tokens (J, N, D_v): slots (J, S, D)."""
        return self.queries.expand(len(tokens), -1, -1), None

    def forward(self, states: Tensor) -> Tensor:
        """Map the states at the slots (J, S, D) to visual tokens (J, N, D_v)."""
        return self.restore(self._predict(states))

    def loss(self, states: Tensor, tokens: Tensor, drawn: None = None) -> Tensor:
        """Compare what the states at the slots (J, S, D) give with the tokens (J, N, D_v): (J,)."""
        if self.through_decoder:
            raise RuntimeError("the loss of this head is the image decoder's")
        error = self._predict(states) - self.standardise(tokens)
        return error.square().mean(dim=(1, 2)) if self.kind == "mse" else error.norm(dim=-1).mean(dim=1)

    def draw(self, state: Tensor, run: Callable[[Tensor, bool], Tensor], seeds: Sequence[int]) -> Tensor:
        """Map what the language model makes of the queries to visual tokens (B, N, D_v); none are random."""
        return self(run(self.queries.expand(len(state), -1, -1), True))

    def _predict(self, states: Tensor) -> Tensor:
        return self.mapper(states + self.queries if self.add_input else states)


class _EncoderDecoder(nn.Module):
    """GILLMapper: an encoder over the slots, and a decoder over learned queries; (J, S, D) -> (J, N, D_v)."""

    def __init__(
        self,
        dim: int,
        dim_target: int,
        num_tokens: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.project_in = nn.Linear(dim, width)
        layer = _encoder_layer(width, num_heads, int(width * mlp_ratio), "relu")
        self.transformer = nn.Transformer(  # draws the weights of its copies of the layer anew
            width,
            num_heads,
            num_decoder_layers=depth,
            dim_feedforward=int(width * mlp_ratio),
            dropout=0.0,
            custom_encoder=nn.TransformerEncoder(
                layer, depth, nn.LayerNorm(width), enable_nested_tensor=False
            ),
            batch_first=True,
            norm_first=True,
        )
        self.queries = nn.Parameter(torch.randn(num_tokens, width))
        self.project_out = nn.Linear(width, dim_target)

    def forward(self, states: Tensor) -> Tensor:
        queries = self.queries.expand(len(states), -1, -1)
        return self.project_out(self.transformer(self.project_in(states), queries))


def _encoder_layer(width: int, num_heads: int, hidden: int, activation: str) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        width, num_heads, hidden, 0.0, activation, batch_first=True, norm_first=True
    )
