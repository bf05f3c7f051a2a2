"""A small MLP per token with GELU between its layers: the connector of LLaVA-1.5.

Paper: Improved Baselines with Visual Instruction Tuning, arXiv:2310.03744, section 3.2
"""

from __future__ import annotations

from torch import Tensor, nn

from components.layers.places import Places

__all__ = ["Mlp"]


class Mlp(nn.Module):
    """Each encoder token becomes one token of the language model; their order is kept.

    Args:
        dim_in: width of the encoder's tokens, D_v.
        dim_out: width of the language model, D, and of the hidden layers.
        num_tokens_in: encoder tokens, N; as many come out.
        hidden_layers: hidden layers; 1 is LLaVA-1.5's `mlp2x_gelu`.
        positions: normalise the tokens and add a learned position to each. LLaVA has none; a small model
            trained from scratch binds things to their places sooner with them.

    Shapes: tokens (B, N, D_v) -> (B, N, D).
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        num_tokens_in: int,
        *,
        hidden_layers: int = 1,
        positions: bool = False,
    ) -> None:
        super().__init__()
        if hidden_layers < 1:
            raise ValueError(f"hidden_layers must be at least 1, not {hidden_layers}; 'linear' has none")
        self.num_tokens, self.per_token = num_tokens_in, True
        self.place = Places(num_tokens_in, dim_in) if positions else None
        layers: list[nn.Module] = [nn.Linear(dim_in, dim_out)]
        for _ in range(hidden_layers):
            layers += [nn.GELU(), nn.Linear(dim_out, dim_out)]
        self.layers = nn.Sequential(*layers)

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Map tokens (B, n, D_v), number `first` and on of each image, to (B, n, D)."""
        return self.layers(tokens if self.place is None else self.place(tokens, first))
