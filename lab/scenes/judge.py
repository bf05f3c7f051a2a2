"""The judge of generated images: reads every cell and states its own accuracy.

It is trained on the scenes of the train split, which hold training digits alone, and validated on the test
split's, whose digits it has never seen. Its word on a generated image is worth as much as that accuracy,
which every report repeats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab.scenes.world import COLOURS, EMPTY, Scenes, World, WorldSplit

NO_DIGIT = 10  # class of an empty cell


class Judge(nn.Module):
    """Classifier of cell content.

    Shapes: pixels (B, 3, H, W) in [0, 1] -> digit logits (B, C, 11), class 10 is empty; colour logits (B, C,
    6); cell features (B, C, 64).
    """

    FEATURES = 64

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        side = -(-world.cell // 4)  # two strides of 2 round up
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(64 * side**2, self.FEATURES),
            nn.BatchNorm1d(self.FEATURES),
            nn.ReLU(),
        )
        self.digit = nn.Linear(self.FEATURES, 11)
        self.colour = nn.Linear(self.FEATURES, len(COLOURS))

    def cells(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B * C, 3, h, w), cells in raster order."""
        grid, side = self.world.grid, self.world.cell
        split = pixels.unflatten(2, (grid, side)).unflatten(4, (grid, side))  # (B, 3, g, h, g, w)
        return split.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = (len(pixels), self.world.cells)
        features = self.body(self.cells(pixels * 2 - 1))
        digit, colour = self.digit(features), self.colour(features)
        return digit.unflatten(0, count), colour.unflatten(0, count), features.unflatten(0, count)


def train_judge(split: WorldSplit, steps: int, batch_size: int, learning_rate: float, seed: int) -> Judge:
    """Trains a judge on one split (the training digits)."""
    torch.manual_seed(seed)
    judge = Judge(split.world)
    optimizer = torch.optim.AdamW(judge.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, len(split.scenes), batch_size)
        pixels = torch.from_numpy(split.pixels(rows))
        pixels = pixels + 0.03 * torch.randn_like(pixels)  # generated images are not perfectly clean
        digit_target, colour_target, occupied = _targets(split.scenes.take(rows))
        digit, colour, _ = judge(pixels)
        loss = F.cross_entropy(digit.flatten(0, 1), digit_target.flatten(), label_smoothing=0.05)
        loss = loss + F.cross_entropy(colour[occupied], colour_target[occupied])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


@dataclass(frozen=True)
class Verdict:
    """What the judge says of B images against the scenes they should show.

    Attributes:
        digit: (B,) share of the cells that should hold a digit which hold the right one.
        colour: (B,) share of those whose tint is right (a cell judged empty is wrong).
        place: (B,) share of all cells that are occupied or empty as they should be.
        scene: (B,) whether every cell is right in all three respects.
        features: (K, 64) judge features of the cells that should hold a digit.
    """

    digit: np.ndarray
    colour: np.ndarray
    place: np.ndarray
    scene: np.ndarray
    features: np.ndarray


@torch.no_grad()
def judge_images(judge: Judge, pixels: Tensor, scenes: Scenes) -> Verdict:
    """Scores images (B, 3, H, W) in [0, 1] against B scenes."""
    digit_target, colour_target, occupied = _targets(scenes)
    parts = [judge(chunk) for chunk in pixels.split(500)]
    digit = torch.cat([part[0] for part in parts]).argmax(dim=-1)  # (B, C)
    colour = torch.cat([part[1] for part in parts]).argmax(dim=-1)
    features = torch.cat([part[2] for part in parts])
    seen = digit != NO_DIGIT
    digit_right = digit == digit_target
    colour_right = (colour == colour_target) & seen
    number = occupied.sum(dim=1)
    whole = (digit_right & (colour_right | ~occupied)).all(dim=1)
    return Verdict(
        digit=((digit_right & occupied).sum(dim=1) / number).numpy(),
        colour=((colour_right & occupied).sum(dim=1) / number).numpy(),
        place=(seen == occupied).float().mean(dim=1).numpy(),
        scene=whole.float().numpy(),
        features=features[occupied].numpy(),
    )


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two Gaussians fitted to features (K, F) and (L, F) (FID, arXiv:1706.08500).

    Its floor depends on the number of samples: compare only distances computed from equally many.
    """
    mean = first.mean(axis=0) - second.mean(axis=0)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    # The trace of the root of one @ two, from symmetric matrices: units that never fire make them singular.
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(values.clip(0))
    overlap = np.sqrt(np.linalg.eigvalsh(root.T @ two @ root).clip(0)).sum()
    return float(mean @ mean + np.trace(one + two) - 2 * overlap)


def _targets(scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Digit classes (B, C), colour classes (B, C), occupied (B, C)."""
    digit = torch.from_numpy(scenes.digit.astype(np.int64))
    occupied = digit != EMPTY
    return digit.masked_fill(~occupied, NO_DIGIT), torch.from_numpy(scenes.colour.astype(np.int64)), occupied
