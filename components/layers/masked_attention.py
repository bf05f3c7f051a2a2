"""Multi-head attention in which a mask says what sees what."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from components.layers.attention import Attention

__all__ = ["MaskedAttention"]


class MaskedAttention(Attention):
    """`Attention` with a mask; without one it computes the same numbers.

    Shapes: x (B, Q, dim), context (B, K, dim_context), mask bool that broadcasts to (B, Q, K)
        -> (B, Q, dim).
    """

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let x (B, Q, dim) attend to context (B, K, dim_context) where the mask is True."""
        query = self._heads(self.query(x))  # (B, Q, dim) -> (B, heads, Q, head_dim)
        key, value = self._heads(self.key(context)), self._heads(self.value(context))
        if mask is not None:
            mask = mask.unsqueeze(-3)  # (B, Q, K) -> (B, 1, Q, K): the same for every head
        mixed = functional.scaled_dot_product_attention(query, key, value, mask)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, heads, Q, head_dim) -> (B, Q, dim)
