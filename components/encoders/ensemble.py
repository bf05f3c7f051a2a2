"""Several encoders side by side: their tokens joined along the channels or one after the other.

Paper: Prismatic VLMs, arXiv:2402.07865, section 4.2 (DINOv2 and SigLIP by channel); Eagle, arXiv:2408.15998
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from components.layers.resize import resize_tokens

__all__ = ["Ensemble"]


class Ensemble(nn.Module):
    """Each part sees the whole image and normalises it in its own way.

    Args:
        image_size: side of the image in pixels.
        parts: encoders, each a word, or a mapping of `name` and settings: {name: vit, dim: 64}.
        join: "channel" puts the tokens of one place together, D_v being the sum of the widths; grids unlike
            the first part's are resampled to it, bilinear. "sequence" puts the tokens of one part after those
            of another; all widths must be equal.

    Shapes: pixels (B, 3, H, W) in [0, 1] -> tokens (B, N, D_v).
    """

    grid: tuple[int, int] | None

    def __init__(
        self,
        image_size: int,
        *,
        parts: list = ["vit", "patches"],  # noqa: B006  # the catalogue shows it, and nothing changes it
        join: Literal["channel", "sequence"] = "channel",
    ) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts: expected at least one encoder")
        self.parts = nn.ModuleList(_build(spec, image_size) for spec in parts)
        self.image_size, self._join = image_size, join
        encoders: list[Any] = list(self.parts)
        widths = [encoder.dim for encoder in encoders]
        counts = [encoder.num_tokens for encoder in encoders]
        self._grids = [encoder.grid for encoder in encoders]
        if join == "sequence":
            if len(set(widths)) > 1:
                raise ValueError(f"join sequence needs parts of one width, not {_listed(widths)}")
            self.dim, self.num_tokens, self.grid = widths[0], sum(counts), None
        else:
            gridded = None not in self._grids
            if not gridded and len(set(counts)) > 1:
                raise ValueError(
                    f"join channel needs a grid in every part or one count of tokens, not {_listed(counts)}"
                )
            self.dim, self.num_tokens = sum(widths), counts[0]
            self.grid = self._grids[0] if gridded else None

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) in [0, 1] to tokens (B, N, D_v)."""
        if self._join == "sequence":
            return torch.cat([encoder(pixels) for encoder in self.parts], dim=1)
        found = []
        for encoder, grid in zip(self.parts, self._grids, strict=True):
            tokens = encoder(pixels)  # -> (B, n, width of this part)
            found.append(resize_tokens(tokens, grid, self.grid) if self.grid else tokens)
        return torch.cat(found, dim=2)


def _build(spec: Any, image_size: int) -> Any:
    """Build one part from a word or a mapping of `name` and settings."""
    settings = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    word = settings.pop("name", None)
    folder = Path(__file__).parent
    words = sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    if word not in words:
        raise ValueError(f"parts: no encoder '{word}'{_nearest(word, words)}")
    module = import_module(f"components.encoders.{word}")
    source = getattr(module, module.__all__[0])
    declared = [p.name for p in signature(source).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    for name in settings:
        if name not in declared:
            raise ValueError(f"parts: {word} has no setting '{name}'{_nearest(name, declared)}")
    try:
        return source(image_size, **settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"parts: {word}: {error}") from error


def _nearest(name: object, valid: list[str]) -> str:
    near = get_close_matches(str(name), valid, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"{hint}; have {', '.join(valid) or 'none'}"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in numbers)
