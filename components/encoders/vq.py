"""Discrete image tokens: the encoder and codebook of diffusers' VQModel (VQ-VAE, VQ-GAN), also pretrained.

Paper: Taming Transformers for High-Resolution Image Synthesis (VQ-GAN), arXiv:2012.09841, section 3.1;
VQ-VAE, arXiv:1711.00937, section 3 and appendix A; normalised codes: ViT-VQGAN, arXiv:2110.04627, section 3.2
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.layers.autoencoder import build, cosine_encoder, levels_of, to_tokens

__all__ = ["Vq"]


class Vq(nn.Module):
    """Each place of a feature map is replaced by the nearest of K codes; the image decoder `vq` is its mate.

    The gradient passes the choice straight through: that of a token goes to the features unchanged. With
    `path` the checkpoint says the architecture and the codes, and the settings of both are not read.

    Args:
        image_size: side of the image in pixels.
        path: local folder, or name on the Hugging Face hub, of a VQModel of diffusers; None trains anew.
        subfolder: folder of the model within `path`, such as "vqvae" in a pipeline's.
        downsample: pixels a side of a token, a power of 2; tokens are (image_size / downsample) squared.
        channels: width at full resolution.
        multipliers: the width of each level relative to `channels`; None is 1, 2, 4, 4, ...
        layers: residual blocks a level.
        attention: where feature maps attend to themselves: nowhere, in the middle, or also on the coarsest
            level.
        shortcut: add a linear map of the pixels below a place to its features, as residual autoencoding does
            level by level (DC-AE, arXiv:2410.10733); a coarse image then takes tens of steps, not thousands.
            Published models have none.
        num_codes: codes, K.
        dim: width of a code, D_v.
        normalise: put features and codes on the unit sphere, so that codes differ in direction only and, with
            few dimensions, stay in use.
        commitment: weight beta of the pull of features to their codes.
        ema: decay of the running means of their features that the codes follow in training; None lets them
            learn by gradient, from a loss that pulls them to their features with weight 1.
        legacy: without `ema`, weigh the codes' pull by `commitment` and the features' by 1, as the published
            code of VQ-GAN and of SEED does; the paper has it the other way round, and so is the default.
        restart: training steps after which a code that no place has chosen begins again from a feature of
            the batch, drawn by torch's generator among those far from the codes in use; 0 never restarts one.

    Shapes: pixels (B, 3, H, W) in [0, 1] -> tokens (B, N, D_v), rows of `codebook` (K, D_v) in raster order.
    """

    codes: Tensor
    counts: Tensor
    unused: Tensor

    def __init__(
        self,
        image_size: int,
        *,
        path: str | None = None,
        subfolder: str | None = None,
        downsample: int = 4,
        channels: int = 8,
        multipliers: list | None = None,
        layers: int = 1,
        attention: Literal["none", "middle", "coarsest"] = "middle",
        shortcut: bool = True,
        num_codes: int = 1024,
        dim: int = 16,
        normalise: bool = False,
        commitment: float = 0.25,
        ema: float | None = 0.95,
        legacy: bool = False,
        restart: int = 20,
    ) -> None:
        super().__init__()
        if legacy and ema is not None:
            raise ValueError(
                "legacy weighs the loss of codes that learn by gradient; set ema to null with it"
            )
        shortcut = shortcut and path is None
        model = build(
            "VQModel",
            path,
            subfolder,
            levels_of(downsample),
            channels,
            multipliers,
            layers,
            attention,
            shortcut,
            latent_channels=dim,
            num_vq_embeddings=num_codes,
        )
        factor = 2 ** (len(model.config.block_out_channels) - 1)
        if image_size % factor:
            raise ValueError(f"image_size {image_size} is not a multiple of downsample {factor}")
        rows = image_size // factor
        self.image_size, self.num_tokens, self.grid = image_size, rows**2, (rows, rows)
        self.normalise, self.commitment, self.legacy = normalise, commitment, legacy
        self.ema, self.restart = ema, restart
        self.encoder, self.project = model.encoder, model.quant_conv
        self.shortcut = cosine_encoder(dim, factor) if shortcut else None
        codes = model.quantize.embedding.weight
        self.dim: int = codes.shape[1]
        if ema is None:
            self.codes = codes  # (K, D_v)
        else:
            self.register_buffer("codes", codes.detach())
            self.register_buffer("counts", torch.zeros(len(codes)))  # running, of the places that chose each
        # training steps since each code was chosen; new ones stand for nothing yet and restart at once
        self.register_buffer("unused", torch.full((len(codes),), restart if path is None else 0))

    @property
    def codebook(self) -> Tensor:
        """The codes (K, D_v)."""
        return functional.normalize(self.codes, dim=-1) if self.normalise else self.codes

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v)."""
        features = self._features(pixels)
        return _straight_through(features, self.codebook[self._nearest(features)])

    def autoencode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v) and the loss of features and codes (B,).

        In training it also restarts codes out of use, and moves the running means.
        """
        features = self._features(pixels)
        flat = features.detach().flatten(0, 1)  # (B * N, D_v)
        if self.training and self.restart:
            self._restart(flat)
        index = self._nearest(features)
        chosen = self.codebook[index]
        if self.training:
            self.unused += 1
            self.unused[index.unique()] = 0
            if self.ema is not None:
                self._follow(flat, index.flatten(), self.ema)
        loss = (features - chosen.detach()).square().mean(dim=(1, 2))
        if self.ema is None:
            pull = (chosen - features.detach()).square().mean(dim=(1, 2))
            loss = loss + self.commitment * pull if self.legacy else self.commitment * loss + pull
        else:
            loss = self.commitment * loss
        return _straight_through(features, chosen), loss

    def _features(self, pixels: Tensor) -> Tensor:
        pixels = pixels * 2 - 1
        grid = self.project(self.encoder(pixels))  # (B, 3, H, W) -> (B, D_v, rows, rows)
        if self.shortcut is not None:
            grid = grid + self.shortcut(pixels)
        features = to_tokens(grid).to(self.codes.dtype)  # -> (B, N, D_v)
        return functional.normalize(features, dim=-1) if self.normalise else features

    def _nearest(self, features: Tensor) -> Tensor:
        """The number (B, N) of the code nearest to each feature (B, N, D_v)."""
        return torch.cdist(features.flatten(0, 1), self.codebook).argmin(dim=1).view(features.shape[:2])

    def _restart(self, features: Tensor) -> None:
        """Move codes that have been out of use for long to features (n, D_v).

        The chance of a feature grows with its squared distance from the codes in use, as in k-means++.
        """
        dead = self.unused >= self.restart
        if not dead.any():
            return
        known = self.codebook[~dead] if not dead.all() else features.mean(dim=0, keepdim=True)
        far = torch.cdist(features, known).amin(dim=1).square() + 1e-12
        drawn = far.multinomial(int(dead.sum()), replacement=True)
        self.codes.data[dead] = features[drawn]
        self.unused[dead] = 0
        if self.ema is not None:
            self.counts[dead] = 0

    def _follow(self, features: Tensor, index: Tensor, decay: float) -> None:
        """Move each code to the running mean of the features (n, D_v) that chose it; `index` (n,)."""
        chosen = index.bincount(minlength=len(self.codes)).to(features)  # (K,)
        sums = torch.zeros_like(self.codes).index_add_(0, index, features)
        self.counts.mul_(decay).add_(chosen, alpha=1 - decay)
        share = (1 - decay) * chosen / self.counts.clamp(min=1e-12)  # of this batch in the mean
        mean = sums / chosen.clamp(min=1)[:, None]
        self.codes += share[:, None] * (mean - self.codes)


def _straight_through(features: Tensor, chosen: Tensor) -> Tensor:
    """The chosen codes to the last bit, with the gradient of the features."""
    return chosen.detach() + (features - features.detach())
