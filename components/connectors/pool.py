"""Fewer tokens by averaging or joining neighbours, then a small MLP: DeCo, Qwen2-VL, MiniGPT-v2.

Paper: DeCo, arXiv:2405.20985; Qwen2-VL, arXiv:2409.12191, section 2.1; MiniGPT-v2,
arXiv:2310.09478, section 2.1
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from components.layers.grid import side_of, space_to_depth

__all__ = ["Pool"]


class Pool(nn.Module):
    """A `grid` x `grid` square of tokens in raster order, each from its own region of the image.

    Args:
        dim_in: width of the encoder's tokens, D_v.
        dim_out: width of the language model, D.
        num_tokens_in: encoder tokens, N, which make a square grid.
        grid: rows and columns of what comes out; M = grid^2.
        mode: "average" over regions of any size (DeCo); "concat" joins the tokens of a square window along
            channels (Qwen2-VL); "raster" joins tokens that follow one another in raster order (MiniGPT-v2).
        norm: normalise the encoder's tokens first (Qwen2-VL).
        hidden_dim: width of the MLP's hidden layer. None is D (DeCo), Qwen2-VL has 4 D_v, and 0 leaves it
            out for a single linear map (MiniGPT-v2).

    Shapes: tokens (B, N, D_v) -> (B, M, D).

    Raises:
        ValueError: the tokens make no square grid, or it does not shrink to the one asked for.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        num_tokens_in: int,
        *,
        grid: int = 2,
        mode: Literal["average", "concat", "raster"] = "average",
        norm: bool = False,
        hidden_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.side, self.grid, self.mode = side_of(num_tokens_in), grid, mode
        if not 1 <= grid <= self.side or (mode != "average" and self.side % grid):
            raise ValueError(f"mode '{mode}' cannot bring a grid of side {self.side} to side {grid}")
        self.num_tokens = grid**2
        width = dim_in if mode == "average" else dim_in * num_tokens_in // self.num_tokens
        hidden = dim_out if hidden_dim is None else hidden_dim
        self.norm = nn.LayerNorm(dim_in, 1e-6) if norm else nn.Identity()
        layers: list[nn.Module] = [nn.Linear(width, hidden or dim_out)]
        if hidden:
            layers += [nn.GELU(), nn.Linear(hidden, dim_out)]
        self.layers = nn.Sequential(*layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D_v) to (B, M, D)."""
        return self.layers(self._fewer(self.norm(tokens)))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Average tokens (B, N, D_v) to (B, M, D_v), unless they are normalised before, or joined."""
        first = self.mode == "average" and isinstance(self.norm, nn.Identity)
        return self._fewer(tokens) if first else tokens

    def _fewer(self, tokens: Tensor) -> Tensor:
        if self.mode == "average":
            side = side_of(tokens.shape[1])  # of what was pooled before, `grid`
            image = tokens.transpose(1, 2).unflatten(2, (side, side))  # (B, D_v, side, side)
            return functional.adaptive_avg_pool2d(image, self.grid).flatten(2).transpose(1, 2)  # (B, M, D_v)
        if self.mode == "concat":
            return space_to_depth(tokens, self.side // self.grid)  # (B, M, N / M * D_v)
        return tokens.unflatten(1, (self.num_tokens, -1)).flatten(2)  # (B, M, N / M * D_v)
