"""A pretrained vision tower of transformers: CLIP, SigLIP or DINOv2, from a local folder or the hub.

Paper: CLIP, arXiv:2103.00020, section 2.4; SigLIP, arXiv:2303.15343; DINOv2, arXiv:2304.07193
"""

from __future__ import annotations

from components.layers.vision_tower import VisionTower

__all__ = ["Clip"]


class Clip(VisionTower):
    """Patch tokens of one layer, in raster order; register tokens are dropped.

    The image is resized to the tower's resolution. Mean and deviation come from the checkpoint. Blocks above
    the chosen layer are not kept, so nothing is computed or stored in vain.

    Args:
        image_size: side of the incoming image in pixels.
        path: local folder, or name on the Hugging Face hub; a full CLIP or SigLIP model will do.
        layer: index into the tower's hidden states: -2 is the last but one layer (LLaVA), -1 the last, before
            any final norm.
        keep_class: put the class token first; tokens then have no grid. SigLIP has none to keep.
        resolution: side at which the tower sees the image, with position embeddings interpolated to match;
            None for the tower's own.
        pool: resample the grid of tokens to `pool` rows and columns, bilinear; None for none.
        normalise: scale every token to length 1.
        config: in place of `path`, a tower with random weights: its family as `model_type`, such as
            `clip_vision_model`, settings of that family as transformers calls them, and `image_mean` and
            `image_std` of its pixels where they are not the family's own.

    Shapes: pixels (B, 3, H, W) in [0, 1] -> tokens (B, N, D_v).
    """

    def __init__(
        self,
        image_size: int,
        *,
        path: str = "openai/clip-vit-base-patch32",
        layer: int = -2,
        keep_class: bool = False,
        resolution: int | None = None,
        pool: int | None = None,
        normalise: bool = False,
        config: dict | None = None,
    ) -> None:
        super().__init__(
            image_size,
            path=path,
            families=("clip", "siglip", "dinov2", "dinov2_with_registers"),
            layer=layer,
            keep_class=keep_class,
            resolution=resolution,
            pool=pool,
            normalise=normalise,
            config=config,
        )
