"""Contrastive pretraining of a vision encoder on images and captions, whole and by region."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from components.contracts import Encoder
from lab.errors import LabError
from lab.models.store import load_component
from lab.samples.regions import CaptionedRegions

CONTRASTIVE = "contrastive.safetensors"  # beside the encoder


class ContrastiveModel(nn.Module):
    """An encoder, a small text tower and a linear pixel readout.

    Three losses: images against captions (CLIP, arXiv:2103.00020), cells against the phrases that describe
    them (RegionCLIP, arXiv:2112.09106) so that tokens say what is *where*, and reconstruction of patches by a
    linear map so that tokens keep how it looks.

    Args:
        encoder: (B, 3, H, W) -> (B, N, D_v), with a square token grid.
        vocabulary: number of word ids.
        dim: width of the shared space.
    """

    encoder: Encoder

    def __init__(self, encoder: Encoder, vocabulary: int, dim: int = 128) -> None:
        super().__init__()
        if encoder.grid is None:
            raise LabError("contrastive pretraining: the encoder's tokens lie on no grid, so cells have none")
        self.encoder = encoder
        self.words = nn.Embedding(vocabulary, dim, padding_idx=0)
        self.order = nn.Parameter(0.02 * torch.randn(64, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.text_tower = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.image_projection = nn.Linear(encoder.dim, dim)
        self.region_projection = nn.Linear(encoder.dim, dim)
        self.log_scale = nn.Parameter(torch.tensor([2.66, 2.66]))  # 1 / 0.07, as in CLIP
        self.grid = encoder.grid
        self.patch = encoder.image_size // encoder.grid[0]
        self.readout = nn.Linear(encoder.dim, 3 * self.patch**2)

    def embed_text(self, ids: Tensor) -> Tensor:
        """(K, L) ids -> (K, dim), unit length."""
        padding = ids == 0
        states = self.text_tower(self.words(ids) + self.order[: ids.shape[1]], src_key_padding_mask=padding)
        states = states.masked_fill(padding.unsqueeze(-1), 0).sum(dim=1)  # (K, dim)
        return F.normalize(states / (~padding).sum(dim=1, keepdim=True), dim=-1)

    def regions(self, tokens: Tensor, side: int) -> Tensor:
        """(B, N, D_v) -> (B, side * side, D_v): tokens averaged within each cell."""
        grid = tokens.transpose(1, 2).unflatten(2, self.grid)  # (B, D_v, gh, gw)
        return F.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2)

    def caption_loss(self, tokens: Tensor, batch: CaptionedRegions) -> Tensor:
        """Scalar; images (B, N, D_v) against the captions of the batch, both ways."""
        image = F.normalize(self.image_projection(tokens.mean(dim=1)), dim=-1)  # (B, dim)
        logits = self._scale(0) * image @ self.embed_text(batch.captions).T  # (B, B)
        same = (batch.captions.unsqueeze(0) == batch.captions.unsqueeze(1)).all(
            dim=-1
        )  # (B, B) equal captions
        return (_multi_positive(logits, same) + _multi_positive(logits.T, same)) / 2

    def region_logits(self, tokens: Tensor, batch: CaptionedRegions) -> Tensor:
        """(B, C, U): every cell of the images (B, N, D_v) against every phrase of the batch."""
        side = round(batch.phrase_of.shape[1] ** 0.5)
        region = F.normalize(self.region_projection(self.regions(tokens, side)), dim=-1)  # (B, C, dim)
        return self._scale(1) * region @ self.embed_text(batch.phrases).T

    def region_loss(self, tokens: Tensor, batch: CaptionedRegions) -> Tensor:
        """Scalar; each cell has to find its phrase among all of the batch."""
        return F.cross_entropy(self.region_logits(tokens, batch).flatten(0, 1), batch.phrase_of.flatten())

    def reconstruction_loss(self, tokens: Tensor, batch: CaptionedRegions) -> Tensor:
        """Scalar, mean squared error of pixels read linearly from the token of their patch."""
        patches = (
            F.pixel_unshuffle(batch.pixels, self.patch).flatten(2).transpose(1, 2)
        )  # (B, N, 3 * patch^2)
        return F.mse_loss(self.readout(tokens), patches)

    def _scale(self, index: int) -> Tensor:
        return self.log_scale[index].clamp(max=4.6).exp()


def _multi_positive(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy (scalar) where a row may have several right answers; their probabilities add up."""
    total = logits.logsumexp(dim=1)
    right = logits.masked_fill(~positive, float("-inf")).logsumexp(dim=1)
    return (total - right).mean()


def save_contrastive(folder: Path, model: ContrastiveModel) -> None:
    """Writes everything but the encoder, which is a component of its own, to `contrastive.safetensors`."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    save_file(state, folder / CONTRASTIVE)


def load_contrastive(folder: Path) -> ContrastiveModel:
    """The contrastive model of a folder that holds its encoder too; in eval mode."""
    state = load_file(folder / CONTRASTIVE)
    model = ContrastiveModel(load_component(folder), *state["words.weight"].shape)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(not name.startswith("encoder.") for name in missing):
        raise LabError(f"{folder / CONTRASTIVE}: its weights do not fit the encoder beside it")
    return model.eval()
