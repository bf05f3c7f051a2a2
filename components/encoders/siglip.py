"""The image encoder of SigLIP, trained with the sigmoid loss; SigLIP 2 of one fixed resolution too.

Paper: Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343; SigLIP 2, arXiv:2502.14786
"""

from __future__ import annotations

from components.layers.vision_tower import VisionTower

__all__ = ["Siglip"]


class Siglip(VisionTower):
    """Patch tokens of one layer, in raster order; there is no class token.

    The image is resized to the tower's resolution. Mean and deviation come from the checkpoint. Blocks above
    the chosen layer and the pooling head are not kept. MetaMorph's encoder (arXiv:2412.14164) is path
    "google/siglip-so400m-patch14-384" with pool 8 and normalise.

    Args:
        image_size: side of the incoming image in pixels.
        path: local folder, or name on the Hugging Face hub; a full SigLIP model will do.
        layer: index into the tower's hidden states; -1 is the last, before the final norm.
        resolution: side at which the tower sees the image, with position embeddings interpolated to match;
            None for the tower's own.
        pool: resample the grid of tokens to `pool` rows and columns, bilinear; None for none.
        normalise: scale every token to length 1.
        config: in place of `path`, a tower with random weights: its family as `model_type`, such as
            `siglip_vision_model`, settings of that family as transformers calls them, and `image_mean` and
            `image_std` of its pixels where they are not the family's own.

    Shapes: pixels (B, 3, H, W) in [0, 1] -> tokens (B, N, D_v).
    """

    def __init__(
        self,
        image_size: int,
        *,
        path: str = "google/siglip-base-patch16-224",
        layer: int = -1,
        resolution: int | None = None,
        pool: int | None = None,
        normalise: bool = False,
        config: dict | None = None,
    ) -> None:
        super().__init__(
            image_size,
            path=path,
            families=("siglip",),
            layer=layer,
            keep_class=False,
            resolution=resolution,
            pool=pool,
            normalise=normalise,
            config=config,
        )
