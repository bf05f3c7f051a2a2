"""Pictures as files, named as MLflow's image grid looks for them: key, step, time."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.tracking import names

_PREVIEW = 256  # px, the longer side of what the grid shows


def write_picture(image: Any, name: str, step: int, time: int, place: Callable[[str], Path]) -> list[Path]:
    """Writes a picture in full and as a preview.

    Args:
        image: PIL, or (H,W,3) or (3,H,W) as uint8 or as floats in [0,1].
        name: What the grid calls it; the same at every step.
        step: Of the training.
        time: Milliseconds.
        place: File name -> path to write to.
    """
    picture = as_picture(image)
    key = names.key(name).replace(":", "_").replace("/", "~")
    stem = f"{key}+step+{step}+timestamp+{time}+{uuid.uuid4()}"
    full, preview = place(f"{stem}.png"), place(f"{stem}+compressed.webp")
    picture.save(full)
    picture.thumbnail((_PREVIEW, _PREVIEW))
    picture.convert("RGB").save(preview)
    return [full, preview]


def as_picture(image: Any) -> Any:
    """Anything that shows a picture -> a PIL image of its own."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image.copy()
    import numpy as np

    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)  # (C,H,W) -> (H,W,C)
    if array.dtype != np.uint8:
        array = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array.squeeze())
