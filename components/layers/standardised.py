"""Visual tokens on a unit scale, dimension by dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Standardised"]


class Standardised(nn.Module):
    """A head whose targets are standardised with a mean and a deviation learnt from a sample of tokens.

    Args:
        dim_target: width of a visual token, D_v.
        standardised: False leaves targets as they are.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim_target: int, standardised: bool) -> None:
        super().__init__()
        self.standardised = standardised
        self.register_buffer("mean", torch.zeros(dim_target))
        self.register_buffer("deviation", torch.ones(dim_target))

    @torch.no_grad()
    def prepare(self, tokens: Tensor, codebook: Tensor | None) -> None:
        """Set the mean and deviation of each dimension from a sample of visual tokens (..., D_v)."""
        if self.standardised:
            flat = tokens.flatten(0, -2)
            self.mean.copy_(flat.mean(dim=0))
            self.deviation.copy_(flat.std(dim=0).clamp_min(1e-4))

    def standardise(self, tokens: Tensor) -> Tensor:
        """Map visual tokens (..., D_v) to what is predicted, (..., D_v)."""
        return (tokens - self.mean) / self.deviation

    def restore(self, standard: Tensor) -> Tensor:
        """Map what is predicted (..., D_v) to visual tokens (..., D_v)."""
        return standard * self.deviation + self.mean
