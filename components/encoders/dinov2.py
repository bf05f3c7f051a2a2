"""DINOv2, trained on images alone by self-supervision; with register tokens too.

Paper: DINOv2, arXiv:2304.07193; Vision Transformers Need Registers, arXiv:2309.16588
"""

from __future__ import annotations

from components.layers.vision_tower import VisionTower

__all__ = ["Dinov2"]


class Dinov2(VisionTower):
    """Patch tokens of one layer, in raster order; register tokens are dropped.

    The image is resized to the tower's resolution. Mean and deviation come from the checkpoint. Blocks above
    the chosen layer are not kept, so nothing is computed or stored in vain.

    Args:
        image_size: side of the incoming image in pixels.
        path: local folder, or name on the Hugging Face hub.
        layer: index into the tower's hidden states; -1 is the last, before the final norm.
        keep_class: put the class token first; tokens then have no grid.
        resolution: side at which the tower sees the image, with position embeddings interpolated to match;
            None for the tower's own, 518 in the published checkpoints (1,369 tokens; 224 gives 256).
        pool: resample the grid of tokens to `pool` rows and columns, bilinear; None for none.
        normalise: scale every token to length 1.

    Shapes: pixels (B, 3, H, W) in [0, 1] -> tokens (B, N, D_v).
    """

    def __init__(
        self,
        image_size: int,
        *,
        path: str = "facebook/dinov2-base",
        layer: int = -1,
        keep_class: bool = False,
        resolution: int | None = None,
        pool: int | None = None,
        normalise: bool = False,
    ) -> None:
        super().__init__(
            image_size,
            path=path,
            families=("dinov2", "dinov2_with_registers"),
            layer=layer,
            keep_class=keep_class,
            resolution=resolution,
            pool=pool,
            normalise=normalise,
        )
