"""One linear map per token: the connector of LLaVA.

Paper: Visual Instruction Tuning, arXiv:2304.08485, section 4.1
"""

from __future__ import annotations

from torch import Tensor, nn

from components.layers.places import Places

__all__ = ["Linear"]


class Linear(nn.Module):
    """Each encoder token becomes one token of the language model; their order is kept.

    Args:
        dim_in: width of the encoder's tokens, D_v.
        dim_out: width of the language model, D.
        num_tokens_in: encoder tokens, N; as many come out.
        positions: normalise the tokens and add a learned position to each. LLaVA has none; a small model
            trained from scratch binds things to their places sooner with them.

    Shapes: tokens (B, N, D_v) -> (B, N, D).
    """

    def __init__(self, dim_in: int, dim_out: int, num_tokens_in: int, *, positions: bool = False) -> None:
        super().__init__()
        self.num_tokens = num_tokens_in
        self.place = Places(num_tokens_in, dim_in) if positions else nn.Identity()
        self.project = nn.Linear(dim_in, dim_out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, D_v) to (B, N, D)."""
        return self.project(self.place(tokens))
