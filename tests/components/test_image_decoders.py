"""Image decoders: which shapes are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lab.errors import LabError
from lab.registry import build, words

Build = Callable[..., Any]


# the detokenizer's queries are a grid, whatever it reads; a pipeline reads a sequence and resizes its images
FREE = {"detokenizer", "stable_diffusion"}


@pytest.mark.parametrize("word", [word for word in words("image_decoder") if word not in FREE])
def test_impossible_shapes_are_refused(word: str) -> None:
    with pytest.raises(LabError, match="needs a square grid of visual tokens, not 15"):
        build("image_decoder", word, 24, 15, 32)
    with pytest.raises(LabError, match="image_size 33"):
        build("image_decoder", word, 24, 16, 33)


def test_transformer_draws_any_whole_number_of_doublings(build_small: Build) -> None:
    for image_size in (8, 16, 64):
        decoder = build("image_decoder", {"name": "transformer", "dim": 32}, 24, 16, image_size)
        assert decoder.sample(torch.randn(1, 16, 24)).shape == (1, 3, image_size, image_size)
