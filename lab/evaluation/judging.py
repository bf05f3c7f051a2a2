"""The judge's own accuracy, and what it says of reconstructions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from lab.evaluation.generation import psnr, reconstruct
from lab.models.autoencoder import ImageAutoencoder
from lab.scenes.judge import Judge, judge_images
from lab.scenes.world import World, WorldSplit


def judge_accuracy(judge: Judge, split: WorldSplit) -> dict[str, float]:
    """How often the judge is right on real scenes of held-out digits."""
    verdict = judge_images(judge, torch.from_numpy(split.pixels(np.arange(len(split.scenes)))), split.scenes)
    return {
        f"judge/{name}": float(getattr(verdict, name).mean())
        for name in ("digit", "colour", "place", "scene")
    }


def load_judge(folder: Path, world: World) -> Judge:
    """The judge that its stage wrote, in eval mode."""
    judge = Judge(world)
    judge.load_state_dict(load_file(folder / "judge.safetensors"))
    return judge.eval()


def reconstruction_metrics(
    autoencoder: ImageAutoencoder, judge: Judge, split: WorldSplit, count: int, seed: int
) -> dict[str, float]:
    """Tokens back to pixels, on `count` held-out scenes: PSNR in dB and what is still legible."""
    rows = np.arange(min(count, len(split.scenes)))
    pixels = torch.from_numpy(split.pixels(rows))
    rebuilt = reconstruct(autoencoder, pixels, seed)
    verdict = judge_images(judge, rebuilt, split.scenes.take(rows))
    return {
        "reconstruction/psnr": float(psnr(rebuilt, pixels).mean()),
        "reconstruction/digit": float(verdict.digit.mean()),
        "reconstruction/scene": float(verdict.scene.mean()),
    }
