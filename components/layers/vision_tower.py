"""A pretrained vision tower of transformers as an encoder: CLIP, SigLIP or DINOv2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.layers.pretrained import load
from components.layers.resize import resize_pixels, resize_tokens

__all__ = ["VisionTower"]

# type of the checkpoint: class in transformers; mean and deviation of its pixels, where it does not say them
_CLIP_PIXELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_PIXELS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TOWERS = {
    "clip": ("CLIPVisionModel", _CLIP_PIXELS),
    "siglip": ("SiglipVisionModel", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    "dinov2": ("Dinov2Model", _IMAGENET_PIXELS),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", _IMAGENET_PIXELS),
}


class VisionTower(nn.Module):
    """Patch tokens of one layer, in raster order; register tokens are dropped.

    The image is resized to the tower's resolution. Mean and deviation come from the checkpoint. Blocks above
    the chosen layer are not kept, so nothing is computed or stored in vain. Sizes follow from the
    configuration alone, so that the tower can also be built on torch's meta device.

    Args:
        image_size: side of the incoming image in pixels.
        path: local folder, or name on the Hugging Face hub; a full CLIP or SigLIP model will do.
        families: types of checkpoint that are welcome, of "clip", "siglip", "dinov2" and
            "dinov2_with_registers".
        layer: index into the tower's hidden states; -1 is the last, before any final norm.
        keep_class: put the class token first; tokens then have no grid.
        resolution: side at which the tower sees the image, with position embeddings interpolated to match;
            None for the tower's own.
        pool: resample the grid of tokens to `pool` rows and columns, bilinear; None for none.
        normalise: scale every token to length 1.
        config: in place of `path`, a tower with random weights: its family as `model_type`, such as
            `siglip_vision_model`, settings of that family as transformers calls them, and `image_mean` and
            `image_std` of its pixels where they are not the family's own.

    Shapes: pixels (B, 3, H, W) in [0, 1] -> tokens (B, N, D_v).
    """

    mean: Tensor
    deviation: Tensor
    grid: tuple[int, int] | None

    def __init__(
        self,
        image_size: int,
        *,
        path: str,
        families: Sequence[str],
        layer: int,
        keep_class: bool,
        resolution: int | None,
        pool: int | None,
        normalise: bool,
        config: dict | None = None,
    ) -> None:
        super().__init__()
        import transformers

        if config is None:
            facts = load(transformers.AutoConfig, path, "CLIP, SigLIP or DINOv2 model")
            facts = getattr(facts, "vision_config", facts)
        else:
            path = "config"
            facts, statistics = _stated(config)
        family = facts.model_type.removesuffix("_vision_model")
        if family not in families:
            raise ValueError(
                f"'{path}' is a {family} model; the vision towers known are {', '.join(families)}"
            )
        name, pixels = _TOWERS[family]
        blocks = facts.num_hidden_layers
        keep = layer if layer >= 0 else blocks + 1 + layer
        if not 1 <= keep <= blocks:
            raise ValueError(
                f"layer {layer} is outside the tower's {blocks}: 1 to {blocks}, or -1 to -{blocks}"
            )
        if keep_class and family == "siglip":
            raise ValueError(f"keep_class: '{path}' is a siglip model, which has no class token")
        self.tower_size: int = facts.image_size if resolution is None else resolution
        rows = self.tower_size // facts.patch_size
        if rows < 1:
            raise ValueError(f"resolution {resolution} is less than a patch of {facts.patch_size}")
        if pool is not None and not 1 <= pool <= rows:
            raise ValueError(f"pool {pool} is outside the {rows} rows of tokens: 1 to {rows}")

        source = getattr(transformers, name)
        if config is None:
            tower = load(source, path, f"{family} model", dtype=torch.float32, output_loading_info=True)
            statistics = _pixel_statistics(path)
        else:
            tower = source._from_config(facts)
        self.embed = tower.embeddings
        if hasattr(self.embed, "mask_token"):
            self.embed.mask_token = None  # DINOv2's, for its own pretraining
        self.norm = getattr(tower, "pre_layrnorm", nn.Identity())
        self.blocks = tower.encoder
        del (self.blocks.layer if "dinov2" in family else self.blocks.layers)[keep:]

        mean, deviation = statistics or pixels
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)
        # DINOv2 interpolates unasked
        foreign = self.tower_size != facts.image_size and "dinov2" not in family
        self._embed_settings = {"interpolate_pos_encoding": True} if foreign else {}
        self._patch_grid = (rows, rows)
        self._token_grid = (rows, rows) if pool is None else (pool, pool)
        self._keep_class, self._normalise = keep_class, normalise
        self.dim: int = facts.hidden_size
        self.image_size, self.grid = image_size, None if keep_class else self._token_grid
        self.num_tokens = self._token_grid[0] ** 2 + keep_class

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v)."""
        pixels = (resize_pixels(pixels, self.tower_size) - self.mean) / self.deviation
        hidden = self.norm(self.embed(pixels, **self._embed_settings))  # -> (B, 1 + patches, D_v) in CLIP
        hidden = self.blocks(hidden).last_hidden_state
        rows, columns = self._patch_grid
        patches = hidden[:, -rows * columns :]  # class and register tokens stand first
        tokens = resize_tokens(patches, self._patch_grid, self._token_grid)  # -> (B, pool * pool, D_v)
        if self._keep_class:
            tokens = torch.cat([hidden[:, :1], tokens], dim=1)
        return functional.normalize(tokens, dim=-1) if self._normalise else tokens


def _stated(settings: dict[str, Any]) -> tuple[Any, tuple[list[float], list[float]] | None]:
    """Make a configuration of transformers of the settings; give it and the pixels' statistics, if stated.

    Raises:
        ValueError: no such family, or a setting it does not have.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    settings = dict(settings)
    mean, deviation = settings.pop("image_mean", None), settings.pop("image_std", None)
    family = settings.pop("model_type", None)
    if family not in CONFIG_MAPPING:
        raise ValueError(f"config: model_type {family!r} is no model of transformers")
    usual = AutoConfig.for_model(family)
    if unknown := [name for name in settings if not hasattr(usual, name)]:
        raise ValueError(f"config: {family} has no setting {', '.join(unknown)}")
    statistics = None if mean is None or deviation is None else (mean, deviation)
    return AutoConfig.for_model(family, **settings), statistics


def _pixel_statistics(path: str) -> tuple[list[float], list[float]] | None:
    """Mean and deviation as the checkpoint states them, if it does."""
    if torch.get_default_device().type == "meta":  # nothing has values there, and the hub need not be asked
        return None
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        stated, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except OSError:
        return None
    if "image_mean" not in stated or "image_std" not in stated:
        return None
    return stated["image_mean"], stated["image_std"]
