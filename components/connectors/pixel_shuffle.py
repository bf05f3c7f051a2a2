"""Space to depth, then a projection: fewer and wider tokens without loss, as in nanoVLM and InternVL.

Paper: InternVL 1.5, arXiv:2404.16821, section 3.1; SmolVLM, arXiv:2504.05299, section 2
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from components.layers.grid import side_of, space_to_depth

__all__ = ["PixelShuffle"]


class PixelShuffle(nn.Module):
    """Each `factor` x `factor` window of encoder tokens becomes one token; windows are in raster order.

    Args:
        dim_in: width of the encoder's tokens, D_v.
        dim_out: width of the language model, D.
        num_tokens_in: encoder tokens, N, which make a square grid.
        factor: side of a window; M = N / factor^2. SmolVLM has 3 or 4, nanoVLM 4, InternVL 2.
        projection: "linear", one matrix without bias (nanoVLM, SmolVLM), or "mlp", a layer norm and two
            linear maps with GELU between them (InternVL).

    Shapes: tokens (B, N, D_v) -> (B, M, D).

    Raises:
        ValueError: the tokens make no square grid, or windows do not tile it.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        num_tokens_in: int,
        *,
        factor: int = 2,
        projection: Literal["linear", "mlp"] = "linear",
    ) -> None:
        super().__init__()
        side = side_of(num_tokens_in)
        if factor < 1 or side % factor:
            raise ValueError(f"windows of side {factor} do not tile a grid of side {side}")
        self.factor = factor
        self.num_tokens = (side // factor) ** 2
        width = dim_in * factor**2
        layers: list[nn.Module] = [nn.Linear(width, dim_out, bias=False)]
        if projection == "mlp":
            layers = [nn.LayerNorm(width), nn.Linear(width, dim_out), nn.GELU(), nn.Linear(dim_out, dim_out)]
        self.project = nn.Sequential(*layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D_v) to (B, M, D)."""
        return self.project(space_to_depth(tokens, self.factor))  # (B, M, factor^2 * D_v) -> (B, M, D)
