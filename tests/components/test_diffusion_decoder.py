"""The diffusion image decoder: its processes and backbones, what it draws at random, and guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from components.layers.diffusion_process import target, weights
from lab.errors import LabError
from lab.registry import build

Build = Callable[..., Any]
PROCESSES = ["flow", "epsilon", "v"]
BACKBONES = ["dit", "unet"]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("process", PROCESSES)
def test_other_noise_gives_another_image(process: str, backbone: str, build_small: Build) -> None:
    decoder = build_small("image_decoder", "diffusion", process=process, backbone=backbone).eval()
    tokens = torch.randn(2, 16, 24)
    images = [decoder.sample(tokens, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    assert all(image.isfinite().all() for image in images)
    assert not torch.allclose(*images)
    assert not torch.allclose(images[0][0], images[0][1])


@pytest.mark.parametrize("process", PROCESSES)
def test_a_perfect_denoiser_samples_the_image_and_has_no_loss(process: str, build_small: Build) -> None:
    decoder = build_small("image_decoder", "diffusion", process=process, steps=3).eval()
    image = torch.rand(2, 3, 32, 32) * 2 - 1

    def perfect(condition: object, noisy: Tensor, time: Tensor) -> Tensor:
        keep, blend = weights(decoder.path, time)
        return target(decoder.predicts, image, (noisy - keep * image) / blend, keep, blend)

    decoder._predict = perfect
    tokens, pixels = torch.randn(2, 16, 24), (image + 1) / 2
    torch.testing.assert_close(decoder.sample(tokens), pixels, atol=1e-4, rtol=0)
    assert decoder.loss(tokens, pixels).max() < 1e-4


@pytest.mark.parametrize(("process", "path"), [("flow", "linear"), ("epsilon", "cosine"), ("v", "cosine")])
def test_targets_are_those_of_the_papers(process: str, path: str, build_small: Build) -> None:
    decoder = build_small("image_decoder", "diffusion", process=process, condition_noise=0.0)
    seen: list[Tensor] = []
    predict = decoder._predict
    decoder._predict = lambda *given: (seen.extend(given[1:]), predict(*given))[1]
    tokens, pixels = torch.randn(4, 16, 24), torch.rand(4, 3, 32, 32)
    torch.manual_seed(3)
    loss = decoder.loss(tokens, pixels)
    noisy, time = seen
    torch.manual_seed(3)
    clean, noise = pixels * 2 - 1, torch.randn_like(pixels)
    angle = time * torch.pi / 2
    keep, blend = (1 - time, time) if path == "linear" else (angle.cos(), angle.sin())
    torch.testing.assert_close(noisy, keep * clean + blend * noise)
    predicted = predict(decoder._condition(tokens), noisy, time)
    match process:
        case "flow":  # velocity on the straight line, from the predicted clean image
            far = time.clamp(min=0.2)
            error = (noisy - predicted) / far - (noisy - clean) / far
        case "epsilon":
            error = noise - predicted
        case _:
            error = keep * noise - blend * clean - predicted
    torch.testing.assert_close(loss, error.square().mean(dim=(1, 2, 3)))


def test_conditions_are_blurred_in_training_only(build_small: Build) -> None:
    decoder = build_small("image_decoder", "diffusion")
    tokens = torch.randn(2, 16, 24)
    assert not torch.equal(decoder._condition(tokens)[0], decoder._condition(tokens)[0])
    decoder.eval()
    assert torch.equal(decoder._condition(tokens)[0], decoder._condition(tokens)[0])


def test_dropped_conditions_are_empty_whatever_the_tokens(build_small: Build) -> None:
    decoder = build_small("image_decoder", "diffusion", drop=0.5, condition_noise=0.0)
    decoder.empty.data.normal_()
    tokens = torch.randn(400, 16, 24)
    image, keys = decoder._condition(tokens)
    empty = decoder._lay_out(decoder.empty.expand(1, 16, 24))
    dropped = (image - empty[0]).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert 0.4 < dropped.float().mean() < 0.6
    assert ((keys - empty[1]).abs().amax(dim=(1, 2)) < 1e-6).equal(dropped)
    kept = decoder.eval()._condition(tokens)[0]
    torch.testing.assert_close(kept[~dropped], image[~dropped])
    assert (kept != empty[0]).flatten(1).any(dim=1).all()


def test_guidance_moves_from_the_empty_condition_through_the_tokens(build_small: Build) -> None:
    tokens, noise = torch.randn(2, 16, 24), 5

    def draw(guidance: float, tokens: Tensor = tokens) -> Tensor:
        torch.manual_seed(1)
        decoder = build_small("image_decoder", "diffusion", drop=0.1, guidance=guidance, steps=1).eval()
        decoder.empty.data.normal_()
        decoder.spread[0].weight.data.mul_(0.1)  # far from where pixels are clamped
        return decoder.sample(tokens, torch.Generator().manual_seed(noise))

    plain, empty, twice = draw(1.0), draw(0.0), draw(2.0)
    assert torch.equal(empty, draw(0.0, torch.randn(2, 16, 24)))
    inside = torch.stack([plain, empty, twice]).sub(0.5).abs().amax(dim=0) < 0.5
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(twice[inside], (2 * plain - empty)[inside], atol=1e-5, rtol=0)


def test_guidance_of_one_is_plain_sampling(build_small: Build) -> None:
    tokens = torch.randn(2, 16, 24)
    images = []
    for settings in ({}, {"drop": 0.1}, {"drop": 0.1, "guidance": 1.0}):
        torch.manual_seed(2)
        decoder = build_small("image_decoder", "diffusion", **settings).eval()
        images.append(decoder.sample(tokens, torch.Generator().manual_seed(3)))
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], images[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": 3.0}, "guidance 3.0 needs an empty condition"),
        ({"backbone": "unet", "depth": 7}, "and of 64, for 7 levels"),
        ({"backbone": "unet", "dim": 34, "num_heads": 2}, "dim 34 is not a multiple of 4"),
        ({"dim": 30}, "dim 30 is not a multiple of num_heads 4"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        build("image_decoder", {"name": "diffusion", **settings}, 24, 16, 32)


def test_unet_reads_the_tokens_by_cross_attention_too(build_small: Build) -> None:
    decoder = build_small("image_decoder", "diffusion", backbone="unet", drop=0.5, condition_noise=0.0)
    decoder.loss(torch.randn(8, 16, 24), torch.rand(8, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())
    assert decoder.embed.weight.grad.abs().sum() > 0
