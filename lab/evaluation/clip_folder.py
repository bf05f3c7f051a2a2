"""A CLIP model of transformers in a local folder, as a measure of images and texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lab.evaluation.subject import NotAdmittedError

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP


class ClipFolder:
    """Unit-length embeddings of images and texts.

    Images are resized to the model's resolution by bicubic interpolation without cropping; mean and deviation
    come from the folder's `preprocessor_config.json`, OpenAI's where it says none.

    Args:
        folder: with `config.json`, weights in safetensors and a tokenizer.

    Raises:
        NotAdmittedError: it holds no CLIP model that transformers reads.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, CLIPModel

        try:
            model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            stated = folder / "preprocessor_config.json"
            given = json.loads(stated.read_text()) if stated.exists() else {}
        except (OSError, ValueError) as error:
            raise NotAdmittedError(f"{folder}: no CLIP model can be read there: {error}") from error
        self.model: Any = model.eval()
        self.size = int(model.config.vision_config.image_size)
        self.mean = torch.tensor(given.get("image_mean", _MEAN)).view(3, 1, 1)
        self.std = torch.tensor(given.get("image_std", _STD)).view(3, 1, 1)

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] -> (B, D), unit length."""
        side = (self.size, self.size)
        sized = F.interpolate(pixels, side, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return _unit(self.model.get_image_features(pixel_values=(sized - self.mean) / self.std))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, D), unit length; each by itself, so that padding changes nothing."""
        longest = self.model.config.text_config.max_position_embeddings
        found = []
        for text in texts:
            ids = self.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")["input_ids"]
            found.append(_unit(self.model.get_text_features(input_ids=ids)))
        return torch.cat(found)


def _unit(features: Any) -> Tensor:
    """Features as a tensor, whichever of transformers' two ways they come, at unit length."""
    return F.normalize(getattr(features, "pooler_output", features), dim=-1)
