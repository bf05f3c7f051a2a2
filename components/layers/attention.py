"""Multi-head attention of one sequence over another."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Attention"]


class Attention(nn.Module):
    """Queries from one sequence, keys and values from another of its own width.

    Projections start from Xavier's deviation, those of queries and keys from twice that. BERT's 0.02 makes
    attention all but uniform at widths near 100, and learned queries would begin as copies of one another.

    Args:
        dim: width of the queries and of the output; split over the heads, unless `head_dim` is given.
        dim_context: width of what is attended to.
        num_heads: attention heads.
        bias: whether the projections have biases.
        head_dim: width of a head.

    Shapes: x (B, Q, dim), context (B, K, dim_context) -> (B, Q, dim).
    """

    def __init__(
        self, dim: int, dim_context: int, num_heads: int, *, bias: bool = True, head_dim: int | None = None
    ) -> None:
        super().__init__()
        if head_dim is None and dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        inner = dim if head_dim is None else num_heads * head_dim
        self.query = nn.Linear(dim, inner, bias=bias)
        self.key = nn.Linear(dim_context, inner, bias=bias)
        self.value = nn.Linear(dim_context, inner, bias=bias)
        self.out = nn.Linear(inner, dim, bias=bias)
        for layer, gain in ((self.query, 2.0), (self.key, 2.0), (self.value, 1.0), (self.out, 1.0)):
            nn.init.xavier_normal_(layer.weight, gain)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Let x (B, Q, dim) attend to context (B, K, dim_context)."""
        query = self._heads(self.query(x))  # (B, Q, dim) -> (B, heads, Q, head_dim)
        key, value = self._heads(self.key(context)), self._heads(self.value(context))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, heads, Q, head_dim) -> (B, Q, dim)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
