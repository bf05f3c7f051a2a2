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
        self.num_tokens, self.per_token = num_tokens_in, True
        self.place = Places(num_tokens_in, dim_in) if positions else None
        self.project = nn.Linear(dim_in, dim_out)

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Map tokens (B, n, D_v), number `first` and on of each image, to (B, n, D)."""
        return self.project(tokens if self.place is None else self.place(tokens, first))
