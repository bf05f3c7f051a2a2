"""The detokenizer: two conditions from visual tokens, fitted without the decoder that reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lab.errors import LabError

Build = Callable[..., Any]


def test_both_conditions_are_estimated(build_small: Build) -> None:
    part = build_small("image_decoder", "detokenizer", image_tokens=4, text_tokens=5, text_dim=7)
    image, text = part.conditions(torch.randn(2, 16, 24))
    assert image.shape == (2, 4, 32)
    assert text.shape == (2, 5, 7)
    assert build_small("image_decoder", "detokenizer").conditions(torch.randn(2, 16, 24))[1] is None


def test_the_fit_weighs_both_errors(build_small: Build) -> None:
    settings = {"text_tokens": 5, "text_dim": 7, "image_weight": 2.0, "text_weight": 0.5}
    part = build_small("image_decoder", "detokenizer", **settings)
    tokens = torch.randn(2, 16, 24)
    image, text = part.conditions(tokens)
    exact = part.condition_loss(tokens, image, text)
    torch.testing.assert_close(exact, torch.zeros(2))
    torch.testing.assert_close(part.condition_loss(tokens, image + 3, text + 4), torch.full((2,), 18.0 + 8.0))
    torch.testing.assert_close(part.condition_loss(tokens, image + 3), torch.full((2,), 18.0))
    with pytest.raises(ValueError, match="text_tokens is 0"):
        build_small("image_decoder", "detokenizer").condition_loss(tokens, image, text)


def test_the_pixel_decoder_takes_no_part_in_the_fit(build_small: Build) -> None:
    part = build_small("image_decoder", "detokenizer", text_tokens=5, text_dim=7)
    for module in part.pixels.modules():
        module.register_forward_pre_hook(lambda *_: pytest.fail("the pixel decoder ran"))
    part.condition_loss(torch.randn(2, 16, 24), torch.randn(2, 16, 32), torch.randn(2, 5, 7)).sum().backward()
    without = {name for name, p in part.named_parameters() if p.grad is None}
    assert without == {name for name, _ in part.named_parameters() if name.startswith("pixels.")}


def test_the_pixel_decoder_reads_the_image_condition(build_small: Build) -> None:
    spec = {"pixels": "diffusion", "pixel_settings": {"dim": 32, "depth": 1}}
    part = build_small("image_decoder", "detokenizer", **spec).eval()
    tokens = torch.randn(2, 16, 24)
    drawn = part.sample(tokens, torch.Generator().manual_seed(0))
    direct = part.pixels.sample(part.conditions(tokens)[0], torch.Generator().manual_seed(0))
    assert torch.equal(drawn, direct)


def test_wrong_pixel_decoders_are_refused(build_small: Build) -> None:
    with pytest.raises(LabError, match="pixels: no image decoder 'telepathy'"):
        build_small("image_decoder", "detokenizer", pixels="telepathy")
    with pytest.raises(LabError, match=r"pixels transformer: .*wings"):
        build_small("image_decoder", "detokenizer", pixel_settings={"wings": 2})
    with pytest.raises(LabError, match="needs a square grid of visual tokens, not 5"):
        build_small("image_decoder", "detokenizer", image_tokens=5)
