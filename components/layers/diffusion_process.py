"""Noise schedules, what a denoiser predicts, and one step back; time runs from 0, data, to 1."""

from __future__ import annotations

from math import pi
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Path", "Prediction", "clean_of", "guide", "renoise", "step_back", "target", "times", "weights"]

Path = Literal["linear", "cosine"]
Prediction = Literal["clean", "velocity", "epsilon", "v"]


def weights(path: Path, time: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of data and of noise at a time in [0, 1]: noisy = keep * clean + blend * noise.

    "linear" is rectified flow's straight line, "cosine" keeps the variance of data with unit deviation.
    """
    if path == "linear":
        return 1 - time, time
    return torch.cos(time * pi / 2), torch.sin(time * pi / 2)


def times(predicts: Prediction, steps: int) -> Tensor:
    """Times (steps + 1,) at which to denoise, from noise to data.

    Predicted noise says nothing about the data at time 1, so "epsilon" starts a little later.
    """
    return torch.linspace(0.98 if predicts == "epsilon" else 1.0, 0.0, steps + 1)


def target(predicts: Prediction, clean: Tensor, noise: Tensor, keep: Tensor, blend: Tensor) -> Tensor:
    """What a denoiser that predicts this should give; "velocity" is meant for the linear path."""
    match predicts:
        case "clean":
            return clean
        case "velocity":
            return noise - clean
        case "epsilon":
            return noise
        case "v":
            return keep * noise - blend * clean


def clean_of(predicts: Prediction, predicted: Tensor, noisy: Tensor, keep: Tensor, blend: Tensor) -> Tensor:
    """The data that a prediction implies; "epsilon" says nothing about it at time 1, where keep is 0."""
    match predicts:
        case "clean":
            return predicted
        case "velocity":  # noisy = clean + blend * velocity, as keep + blend = 1
            return noisy - blend * predicted
        case "epsilon":
            return (noisy - blend * predicted) / keep
        case "v":  # a rotation back by the angle of the time, as keep^2 + blend^2 = 1
            return keep * noisy - blend * predicted


def step_back(
    clean: Tensor, noisy: Tensor, now: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
) -> Tensor:
    """Move to the weights `after` with the noise that `clean` leaves: DDIM; on the linear path, Euler's step.

    `now` and `after` are what `weights` gives; `now` must not be time 0.
    """
    noise = (noisy - now[0] * clean) / now[1]
    return after[0] * clean + after[1] * noise


def renoise(
    clean: Tensor, noisy: Tensor, now: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], fresh: Tensor
) -> Tensor:
    """Move to the weights `after` of the cosine path by DDPM's step, part of whose noise is `fresh`.

    Standard normal `fresh` keeps the distribution; a smaller one lowers the temperature.
    """
    noise = (noisy - now[0] * clean) / now[1]
    renewed = after[1] / now[1] * (1 - (now[0] / after[0]).square()).clamp_min(0).sqrt()
    kept = (after[1].square() - renewed.square()).clamp_min(0).sqrt()
    return after[0] * clean + kept * noise + renewed * fresh


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance of a prediction; 1 is no guidance."""
    return unconditional + guidance * (conditional - unconditional)
