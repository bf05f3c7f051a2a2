"""Images drawn by a trained model, scored by the judge, and reconstructions by the image decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from components.contracts import ImageDecoder
from lab.evaluation.understanding import prompt_of
from lab.models.autoencoder import ImageAutoencoder
from lab.models.generation import generate_image_tokens, generate_text
from lab.models.unified import UnifiedModel
from lab.samples.batch import Collate
from lab.samples.segments import IMAGE_START, Sample, Segment, special


@dataclass(frozen=True)
class Drawn:
    """Images drawn for B samples: the model's, and the real ones they stand for, (B, 3, H, W) in [0, 1]."""

    generated: Tensor
    real: Tensor


@torch.no_grad()
def draw_all(
    model: UnifiedModel,
    image_decoder: ImageDecoder,
    samples: Sequence[Sample],
    collate: Collate,
    batch_size: int,
    seed: int,
) -> Drawn:
    """Draws the image of every sample from its prompt: the model writes its plan, then the image's tokens.

    Args:
        model, image_decoder: in eval mode.
        samples: each with one supervised image.
        collate: with left padding.
        batch_size: rows at once.
        seed: of the image decoder's noise, if it uses any.
    """
    device = next(model.parameters()).device
    images, real = [], []
    for start in range(0, len(samples), batch_size):
        chunk = samples[start : start + batch_size]
        prompts = [prompt_of(sample) for sample in chunk]
        tokenizer = collate.tokenizer
        plans = generate_text(model, collate(prompts).to(device), tokenizer[IMAGE_START])
        prompts = [
            _planned(prompt, tokenizer.decode(plan)) for prompt, plan in zip(prompts, plans, strict=True)
        ]
        seeds = range(seed + start, seed + start + len(chunk))  # of a row each: batch size changes nothing
        tokens = generate_image_tokens(model, collate(prompts).to(device), seeds)  # (b, N, D_v)
        for one, own in zip(tokens, seeds, strict=True):
            generator = torch.Generator(device).manual_seed(own)
            images.append(image_decoder.sample(one.unsqueeze(0), generator).cpu())
        real += [
            segment.picture.pixels
            for sample in chunk
            for segment in sample.segments
            if segment.supervised and segment.picture is not None
        ]
    return Drawn(torch.cat(images), torch.from_numpy(np.stack(real)))


@torch.no_grad()
def reconstruct(autoencoder: ImageAutoencoder, pixels: Tensor, seed: int) -> Tensor:
    """Pixels (B, 3, H, W) through tokens and image decoder."""
    generator = torch.Generator(pixels.device).manual_seed(seed)
    return torch.cat([autoencoder.reconstruct(chunk, generator) for chunk in pixels.split(250)])


def psnr(first: Tensor, second: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio of each image (B,) in dB; pixels in [0, 1]."""
    error = (first - second).square().flatten(1).mean(dim=1).clamp_min(1e-10)
    return (-10 * error.log10()).numpy()


def _planned(prompt: Sample, plan: str) -> Sample:
    """The prompt followed by the model's plan, up to where the image starts."""
    said = [Segment(text=plan, role="assistant")] if plan else []
    return Sample(prompt.id, prompt.task, (*prompt.segments, *said, special(IMAGE_START, "assistant")))
