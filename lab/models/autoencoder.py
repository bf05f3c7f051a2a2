"""Pixels to visual tokens and back: what an image decoder is trained in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from components.contracts import Connector, Encoder, ImageDecoder


class ImageAutoencoder(nn.Module):
    """An encoder, the connector where drawn images are made of its tokens, and an image decoder.

    Args:
        encoder: (B, 3, H, W) -> (B, N, D_v).
        connector: (B, N, D_v) -> (B, M, D), or None where images are drawn as the encoder's tokens.
        image_decoder: tokens -> pixels.
    """

    encoder: Encoder
    connector: Connector | None
    image_decoder: ImageDecoder

    def __init__(self, encoder: Encoder, connector: Connector | None, image_decoder: ImageDecoder) -> None:
        super().__init__()
        self.encoder, self.connector, self.image_decoder = encoder, connector, image_decoder

    def tokens(self, pixels: Tensor, trainable: Sequence[str] = ()) -> tuple[Tensor, Tensor | None]:
        """Visual tokens of pixels (B, 3, H, W), with gradient for the parts that train.

        Returns:
            tokens (B, N, D_v), and the sum (B,) of what trained parts with discrete or random codes are
            charged for them, None where there are none.
        """
        tokens, own = pixels, None
        for role in ("encoder", "connector"):
            part = getattr(self, role)
            if part is None:
                continue
            learns = role in trainable or tokens.requires_grad
            with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
                if role in trainable and hasattr(part, "autoencode"):
                    tokens, loss = part.autoencode(tokens)
                    own = loss if own is None else own + loss
                else:
                    tokens = part(tokens)
        return tokens, own

    def reconstruct(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] through tokens and back."""
        return self.image_decoder.sample(self.tokens(pixels)[0], generator)
