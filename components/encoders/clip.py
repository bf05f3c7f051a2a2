"""A pretrained vision tower of transformers: CLIP, SigLIP or DINOv2, from a local folder or the hub.

Paper: CLIP, arXiv:2103.00020, section 2.4; SigLIP, arXiv:2303.15343; DINOv2, arXiv:2304.07193
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from components.layers.pretrained import load

__all__ = ["Clip"]

# type of the checkpoint: class in transformers; mean and deviation of its pixels, where it does not say them
_CLIP_PIXELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_PIXELS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TOWERS = {
    "clip": ("CLIPVisionModel", _CLIP_PIXELS),
    "siglip": ("SiglipVisionModel", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    "dinov2": ("Dinov2Model", _IMAGENET_PIXELS),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", _IMAGENET_PIXELS),
}


class Clip(nn.Module):
    """Patch tokens of one layer, in raster order; class and register tokens are dropped.

    The image is resized to the tower's own size. Mean and deviation come from the checkpoint. Blocks above
    the chosen layer are not kept, so nothing is computed or stored in vain.

    Args:
        image_size: side of the incoming image in pixels.
        path: local folder, or name on the Hugging Face hub; a full CLIP or SigLIP model will do.
        layer: index into the tower's hidden states: -2 is the last but one layer (LLaVA), -1 the last, before
            any final norm.

    Shapes: pixels (B, 3, H, W) in [0, 1] -> tokens (B, N, D_v).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, image_size: int, *, path: str = "openai/clip-vit-base-patch32", layer: int = -2
    ) -> None:
        super().__init__()
        import transformers

        config = load(transformers.AutoConfig, path, "CLIP, SigLIP or DINOv2 model")
        config = getattr(config, "vision_config", config)
        family = config.model_type.removesuffix("_vision_model")
        if family not in _TOWERS:
            raise ValueError(
                f"'{path}' is a {family} model; the vision towers known are {', '.join(_TOWERS)}"
            )
        name, pixels = _TOWERS[family]
        blocks = config.num_hidden_layers
        keep = layer if layer >= 0 else blocks + 1 + layer
        if not 1 <= keep <= blocks:
            raise ValueError(
                f"layer {layer} is outside the tower's {blocks}: 1 to {blocks}, or -1 to -{blocks}"
            )

        tower = load(
            getattr(transformers, name),
            path,
            f"{family} model",
            dtype=torch.float32,
            output_loading_info=True,
        )
        self.embed = tower.embeddings
        if hasattr(self.embed, "mask_token"):
            self.embed.mask_token = None  # DINOv2's, for its own pretraining
        self.norm = getattr(tower, "pre_layrnorm", nn.Identity())
        self.blocks = tower.encoder
        del (self.blocks.layer if "dinov2" in family else self.blocks.layers)[keep:]

        mean, deviation = _pixel_statistics(path) or pixels
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(3, 1, 1), persistent=False)
        self.tower_size: int = config.image_size
        rows = config.image_size // config.patch_size
        self.dim: int = config.hidden_size
        self.image_size, self.num_tokens, self.grid = image_size, rows**2, (rows, rows)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v)."""
        if pixels.shape[-1] != self.tower_size:
            size = (self.tower_size, self.tower_size)
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        hidden = self.norm(self.embed((pixels - self.mean) / self.deviation))  # -> (B, 1 + N, D_v) in CLIP
        tokens = self.blocks(hidden).last_hidden_state
        return tokens[:, -self.num_tokens :]  # class and register tokens stand first


def _pixel_statistics(path: str) -> tuple[list[float], list[float]] | None:
    """Mean and deviation as the checkpoint states them, if it does."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        stated, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except OSError:
        return None
    if "image_mean" not in stated or "image_std" not in stated:
        return None
    return stated["image_mean"], stated["image_std"]
