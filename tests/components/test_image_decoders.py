"""Image decoders: what the diffusion model draws at random, and which shapes are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lab.errors import LabError
from lab.registry import build, words

Build = Callable[..., Any]


@pytest.mark.parametrize("process", ["flow", "epsilon"])
def test_diffusion_draws_other_images_from_other_noise(process: str, build_small: Build) -> None:
    decoder = build_small("image_decoder", "diffusion", process=process).eval()
    tokens = torch.randn(2, 16, 24)
    images = [decoder.sample(tokens, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    assert all(image.isfinite().all() for image in images)
    assert not torch.allclose(*images)
    assert not torch.allclose(images[0][0], images[0][1])


@pytest.mark.parametrize("process", ["flow", "epsilon"])
def test_a_perfect_denoiser_samples_the_image(process: str, build_small: Build) -> None:
    decoder = build_small("image_decoder", "diffusion", process=process, steps=3).eval()
    image = torch.rand(2, 3, 32, 32) * 2 - 1

    def perfect(condition: object, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        keep, blend = decoder._schedule(time)
        return image if process == "flow" else (noisy - keep * image) / blend

    decoder._predict = perfect
    torch.testing.assert_close(decoder.sample(torch.randn(2, 16, 24)), (image + 1) / 2, atol=1e-4, rtol=0)


def test_conditions_are_blurred_in_training_only(build_small: Build) -> None:
    decoder = build_small("image_decoder", "diffusion")
    tokens = torch.randn(2, 16, 24)
    assert not torch.equal(decoder._condition(tokens)[0], decoder._condition(tokens)[0])
    decoder.eval()
    assert torch.equal(decoder._condition(tokens)[0], decoder._condition(tokens)[0])


# the detokenizer's queries are a grid, whatever it reads
@pytest.mark.parametrize("word", [word for word in words("image_decoder") if word != "detokenizer"])
def test_impossible_shapes_are_refused(word: str) -> None:
    with pytest.raises(LabError, match="needs a square grid of visual tokens, not 15"):
        build("image_decoder", word, 24, 15, 32)
    with pytest.raises(LabError, match="image_size 33"):
        build("image_decoder", word, 24, 16, 33)


def test_transformer_draws_any_whole_number_of_doublings(build_small: Build) -> None:
    for image_size in (8, 16, 64):
        decoder = build("image_decoder", {"name": "transformer", "dim": 32}, 24, 16, image_size)
        assert decoder.sample(torch.randn(1, 16, 24)).shape == (1, 3, image_size, image_size)
