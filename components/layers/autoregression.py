"""Visual heads that predict each token of an image from the state before it, and feed it back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from components.layers.seeded_noise import generators
from components.layers.standardised import Standardised

__all__ = ["Autoregression", "ContinuousAutoregression"]


class Autoregression(nn.Module):
    """Draws one token after the other. A head says how: `draw_token`, and `feed` unless feedback is shared.

    Its constructor ends with `feed_back`, which makes what fed-back tokens are embedded with. An image takes
    as many slots as it has tokens. The last token is not fed back while drawing, as nothing is left to
    predict from it; `inputs` embeds it, for what follows the image.
    """

    reads_before = True
    bidirectional = False
    through_decoder = False

    num_slots: int
    feedback: nn.Module | str  # what embeds fed-back tokens, or "shared"
    _shared: Callable[[Tensor, int], Tensor] | None = None

    def feed_back(
        self, own: nn.Module | None, dim: int, num_tokens: int, hide: float, positions: bool
    ) -> None:
        """Make the way back into the language model.

        Args:
            own: embeds fed-back tokens; None if that is shared with the part that reads images.
            dim: width of the language model, D.
            num_tokens: visual tokens of an image, N.
            hide: share of images all of whose fed-back tokens are replaced by a learned vector in training,
                so that the prompt alone has to do; the others hide a random share of them, drawn uniformly.
                0 hides none.
            positions: whether a learned position is added to each.
        """
        self.num_slots, self.hide = num_tokens, hide
        self.feedback = "shared" if own is None else own
        self.hidden = nn.Parameter(torch.zeros(dim)) if hide else None
        self.position = nn.Parameter(0.02 * torch.randn(num_tokens, dim)) if positions else None

    def share(self, embed: Callable[[Tensor, int], Tensor]) -> None:
        """Take what embeds fed-back tokens (B, n, D_v), number `first` and on of each image, as (B, n, D).

        It stays its owner's: neither its parameters nor its mode are this head's.
        """
        object.__setattr__(self, "_shared", embed)  # nn.Module would register a module as its own

    def feed(self, tokens: Tensor, first: int) -> Tensor:
        """Embed tokens (B, n, D_v), number `first` and on of each image, as (B, n, D)."""
        if isinstance(self.feedback, nn.Module):
            return self.feedback(tokens)
        if self._shared is None:
            raise RuntimeError("feedback is 'shared', but nothing was shared")
        return self._shared(tokens, first)

    def embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        """Make what the language model reads at visual positions.

        Args:
            tokens: (B, n, D_v), visual tokens `first` to `first + n` of each image.
            first: index of the first of them, 0 to N - 1.

        Returns:
            (B, n, D); in training partly hidden.
        """
        embeds = self.feed(tokens, first)
        if self.training and self.hidden is not None:
            share = torch.rand(len(tokens), 1, 1, device=tokens.device)
            share = share.masked_fill(torch.rand_like(share) < self.hide, 1.0)
            hidden = torch.rand(*embeds.shape[:2], 1, device=tokens.device) < share  # (B, n, 1)
            embeds = torch.where(hidden, self.hidden.to(embeds.dtype), embeds)
        if self.position is None:
            return embeds
        return embeds + self.position[first : first + tokens.shape[1]]

    def inputs(self, tokens: Tensor) -> tuple[Tensor, Any]:
        """Embed all tokens (J, N, D_v) of images as (J, N, D); there is nothing for `loss` to know of it."""
        return self.embed(tokens), None

    def draw_token(self, state: Tensor, rows: Sequence[torch.Generator]) -> Tensor:
        """Draw the token (B, 1, D_v) that follows a state (B, 1, D), with each row's own generator."""
        raise NotImplementedError

    def draw(self, state: Tensor, run: Callable[[Tensor, bool], Tensor], seeds: Sequence[int]) -> Tensor:
        """Draw visual tokens (B, N, D_v), each fed back before the next."""
        rows = generators(seeds)
        tokens = [self.draw_token(state, rows)]
        for index in range(self.num_slots - 1):
            state = run(self.embed(tokens[-1], index), True)
            tokens.append(self.draw_token(state, rows))
        return torch.cat(tokens, dim=1)


class ContinuousAutoregression(Autoregression, Standardised):
    """Autoregression over continuous tokens on a unit scale, blurred on their way back in training.

    `noise` is the standard deviation of that blur, in units of a token's own deviation; shared feedback gets
    tokens on their own scale.
    """

    noise: float

    def feed(self, tokens: Tensor, first: int) -> Tensor:
        standard = self.standardise(tokens)
        if self.training and self.noise:
            standard = standard + self.noise * torch.randn_like(standard)
        shared = self.feedback == "shared"
        return super().feed(self.restore(standard) if shared else standard, first)
