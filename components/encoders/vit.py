"""Vision transformer trained from scratch: patches or a small convolutional stem, then timm's blocks.

Paper: An Image is Worth 16x16 Words, arXiv:2010.11929, section 3.1; stem: Early Convolutions Help
Transformers See Better, arXiv:2106.14881, section 4
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

__all__ = ["Vit"]


class Vit(nn.Module):
    """A plain pre-norm ViT without a class token: one output token a patch, in raster order.

    Args:
        image_size: side of the image in pixels.
        patch_size: side of a patch in pixels; tokens are (image_size / patch_size) squared.
        dim: width of a token, D_v.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP, relative to `dim`.
        stem: "linear" maps each patch by itself; "conv" reaches the same grid by convolutions of stride 2,
            which learns faster from little data.
        normalise: give every token unit length, as targets of a cosine loss should have (MetaMorph).

    Shapes: pixels (B, 3, H, W) in [0, 1] -> tokens (B, N, D_v).
    """

    def __init__(
        self,
        image_size: int,
        *,
        patch_size: int = 8,
        dim: int = 128,
        depth: int = 3,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        stem: Literal["linear", "conv"] = "conv",
        normalise: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        from timm.layers import HybridEmbed, PatchEmbed
        from timm.models.vision_transformer import VisionTransformer

        rows = image_size // patch_size
        self.dim, self.image_size, self.normalise = dim, image_size, normalise
        self.num_tokens, self.grid = rows**2, (rows, rows)
        embed = PatchEmbed
        if stem == "conv":
            # the last convolution makes the tokens, so timm needs no projection of its own
            embed = partial(HybridEmbed, backbone=_stem(patch_size, dim), proj=False, feature_size=rows)
        self.model = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size if stem == "linear" else 1,
            embed_dim=dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            class_token=False,
            global_pool="",
            num_classes=0,
            embed_layer=embed,
            weight_init="jax",  # Xavier: timm's usual deviation of 0.02 suits widths near 1000, not 100
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v)."""
        tokens = self.model.forward_features(pixels * 2 - 1)  # (B, 3, H, W) -> (B, N, D_v)
        return nn.functional.normalize(tokens, dim=-1) if self.normalise else tokens


def _stem(patch_size: int, dim: int) -> nn.Module:
    """Convolutions of stride 2 down to the patch grid, widths doubling up to `dim`."""
    steps = patch_size.bit_length() - 1
    if patch_size < 2 or 2**steps != patch_size or dim % 2 ** (steps - 1):
        raise ValueError(
            f'stem "conv" halves the image until a pixel is a patch: patch_size {patch_size} must be a power '
            f'of 2 and dim {dim} a multiple of half of it; or take stem "linear"'
        )
    widths = [3, *(dim >> (steps - 1 - i) for i in range(steps))]
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Conv2d(width_in, width_out, 3, stride=2, padding=1), nn.GELU()]
    stem = nn.Sequential(*layers, nn.Conv2d(dim, dim, 1))
    stem.num_features = dim  # type: ignore[assignment]  # what timm asks of a backbone
    return stem
