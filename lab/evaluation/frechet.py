"""Fréchet distance of drawn to real images in the features of a stated network.

Paper: GANs Trained by a Two Time-Scale Update Rule, arXiv:1706.08500, section 3 (FID, with Inception).

Its value depends on the network, on the number of images (few make it larger) and on the world: compare only
within one network and one number. Published FIDs are Inception's over 30,000 images or more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lab.evaluation.clip_folder import ClipFolder
from lab.evaluation.figures import Figure
from lab.evaluation.subject import NotAdmittedError, folder_of
from lab.scenes.judge import Judge, Verdict, frechet_distance
from lab.scenes.world import EMPTY, Scenes

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's name of the file
RESAMPLES = 200


class Features(nn.Module):
    """What torchmetrics takes as a feature network: uint8 images (B, 3, H, W) -> (B, F)."""

    def __init__(self, network: Judge | ClipFolder) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255
        if isinstance(self.network, ClipFolder):
            return self.network.images(pixels)
        return self.network(pixels)[2].mean(dim=1)  # (B, C, F) -> (B, F)


def feature_network(name: str, judge: Judge) -> nn.Module:
    """The network of a Fréchet distance.

    Args:
        name: "judge" (its features averaged over cells, 64 numbers an image), "inception" (torch-fidelity's,
            2048), or a folder of a transformers CLIP model.
        judge: of the data's world.

    Raises:
        NotAdmittedError: the network is not on this machine; nothing is downloaded.
        LabError: no such network.
    """
    if name == "judge":
        return Features(judge)
    if name != "inception":
        return Features(ClipFolder(folder_of(name, "judge, inception")))
    place = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if importlib.util.find_spec("torch_fidelity") is None or not place.is_file():
        raise NotAdmittedError(
            f"Inception's features need the package torch-fidelity and its weights at {place}; nothing is "
            "downloaded; --features judge needs neither"
        )
    from torchmetrics.image.fid import NoTrainInceptionV3

    network: nn.Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(place))
    return network


def frechet_figure(network: nn.Module, drawn: Tensor, real: Tensor, batch_size: int = 50) -> Figure:
    """The distance, by torchmetrics, with an interval.

    A distance of resampled images is larger than the distance itself, since images repeat; so the interval is
    the value plus and minus 1.96 standard deviations of resampled distances, not their percentiles, and not
    below 0.

    Args:
        network: uint8 images (B, 3, H, W) -> (B, F).
        drawn, real: (n, 3, H, W) and (m, 3, H, W) in [0, 1]; two of each at least.
        batch_size: rows at once; it changes no result.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(drawn), len(real)) < 2:
        raise NotAdmittedError("a Fréchet distance needs at least two images on each side")
    bytes_of = [(images * 255).round().to(torch.uint8) for images in (drawn, real)]
    _, channels, height, width = drawn.shape
    metric = FrechetInceptionDistance(feature=network, input_img_size=(channels, height, width))
    features = []
    for images, is_real in zip(bytes_of, (False, True), strict=True):
        parts = images.split(batch_size)
        for part in parts:
            metric.update(part, real=is_real)
        features.append(torch.cat([network(part) for part in parts]).double().numpy())
    return _with_spread(float(metric.compute()), [np.split(one, len(one)) for one in features])


def frechet_of_cells(drawn: Verdict, drawn_scenes: Scenes, real: Verdict, real_scenes: Scenes) -> Figure:
    """The distance of cells that should hold a digit, in the judge's features, with an interval.

    The interval is as in `frechet_figure`; images are drawn again, each with all of its cells, which are not
    independent.
    """
    value = frechet_distance(drawn.features, real.features)
    sides = ((drawn, drawn_scenes), (real, real_scenes))
    return _with_spread(value, [_by_image(verdict.features, scenes) for verdict, scenes in sides])


def _by_image(features: np.ndarray, scenes: Scenes) -> list[np.ndarray]:
    """Features (K, F) of occupied cells as those (k, F) of each image."""
    cells = (scenes.digit != EMPTY).sum(axis=1)
    return np.split(features, np.cumsum(cells)[:-1])


def _with_spread(value: float, images: Sequence[Sequence[np.ndarray]]) -> Figure:
    """The distance with an interval; `images` of both sides, each with its features (k, F)."""
    spread = 1.96 * float(np.std(_resampled(images), ddof=1))
    return Figure(value, max(0.0, value - spread), value + spread, len(images[0]))


def distance_of(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of features (n, F) and (m, F), fast also where F is far above n and m.

    The trace of the root of the product of two covariances is the sum of the singular values of (n, m) inner
    products of centred samples, so that no matrix of F by F is needed.
    """
    if max(len(first), len(second)) > first.shape[1]:
        return frechet_distance(first, second)
    one, two = ((x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (first, second))
    mean = first.mean(axis=0) - second.mean(axis=0)
    overlap = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    return float(mean @ mean + (one**2).sum() + (two**2).sum() - 2 * overlap)


def _resampled(images: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """Distances of sets of images (two sides, each image with its features (k, F)) that are drawn again."""
    generator = np.random.default_rng(0)
    # so that their order changes nothing
    ordered = [sorted(side, key=lambda one: tuple(one.ravel())) for side in images]
    return [
        distance_of(
            *(
                np.concatenate([side[row] for row in generator.integers(len(side), size=len(side))])
                for side in ordered
            )
        )
        for _ in range(RESAMPLES)
    ]
