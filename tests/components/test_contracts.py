"""What every registered part of every role promises."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lab.registry import ROLES, describe, words

Build = Callable[..., Any]
PARTS = [(role, word) for role in ROLES for word in words(role)]
ROWS = 3
every_part = pytest.mark.parametrize(("role", "word"), PARTS, ids=[f"{r}-{w}" for r, w in PARTS])


def every(role: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("word", words(role))


def inputs(role: str, part: Any) -> Tensor:
    """The part's main input, one row a sample."""
    match role:
        case "encoder":
            return torch.rand(ROWS, 3, 32, 32)
        case "text_decoder":
            return part.embed(torch.randint(0, 40, (ROWS, 7))).detach()
        case "visual_head":
            return torch.randn(ROWS, 16, 40)
        case _:
            return torch.randn(ROWS, 16, 24)


def outputs(role: str, part: Any, x: Tensor) -> Tensor:
    """What the part makes of its main input, one row a sample; equal for equal inputs."""
    torch.manual_seed(1)  # losses of diffusion draw times and noise
    match role:
        case "text_decoder":
            return part.logits(part(x))
        case "visual_head":
            return torch.cat([part(x).flatten(1), part.loss(x, torch.randn(ROWS, 16, 24).to(x))[:, None]], 1)
        case "image_decoder":
            return part.loss(x, torch.rand(ROWS, 3, 32, 32).to(x))
        case _:
            return part(x)


@every_part
def test_a_row_depends_on_that_row_only(role: str, word: str, build_small: Build) -> None:
    part = build_small(role, word).eval()
    x = inputs(role, part)
    before = outputs(role, part, x)
    x[1] += torch.randn_like(x[1])
    after = outputs(role, part, x)
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])


@every_part
def test_gradients_reach_every_parameter_and_the_input(role: str, word: str, build_small: Build) -> None:
    part = build_small(role, word)
    x = inputs(role, part).requires_grad_()
    total = outputs(role, part, x).square().sum()
    if role == "text_decoder":
        total = total + part.embed(torch.arange(40)[None]).sum()
    if role == "visual_head":
        total = total + part.embed(torch.randn(ROWS, 16, 24)).square().sum()
    total.backward()
    assert x.grad is not None
    assert x.grad.flatten(1).any(dim=1).all()
    lacking = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.any()]
    assert not lacking


@every_part
def test_state_dict_round_trips_strictly(role: str, word: str, build_small: Build) -> None:
    part, other = build_small(role, word).eval(), build_small(role, word).eval()
    with torch.no_grad():
        for p in part.parameters():
            p.add_(0.1 * torch.randn_like(p))
    other.load_state_dict(part.state_dict(), strict=True)
    x = inputs(role, part)
    assert torch.equal(outputs(role, part, x), outputs(role, other, x))


@every_part
def test_dtype_follows_the_weights(role: str, word: str, build_small: Build) -> None:
    part = build_small(role, word).double().eval()
    assert outputs(role, part, inputs(role, part).double()).dtype == torch.float64


@every_part
def test_building_does_not_reseed(role: str, word: str, build_small: Build) -> None:
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        build_small(role, word)
        draws.append((torch.rand(()).item(), random.random(), np.random.rand()))
    assert all(a != b for a, b in zip(*draws, strict=True))


@pytest.mark.parametrize(
    ("role", "word"),
    [part for part in PARTS if "path" not in {p.name for p in describe(*part).parameters}],  # not pretrained
)
def test_random_weights_follow_the_seed(role: str, word: str, build_small: Build) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build_small(role, word).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@every_part
def test_nothing_is_frozen(role: str, word: str, build_small: Build) -> None:
    assert all(p.requires_grad for p in build_small(role, word).parameters())


@every("encoder")
def test_encoder_declares_what_it_gives(word: str, build_small: Build) -> None:
    encoder = build_small("encoder", word)
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, encoder.num_tokens, encoder.dim)
    assert encoder.image_size == 32
    assert encoder.grid is None or encoder.grid[0] * encoder.grid[1] == encoder.num_tokens


@every("connector")
def test_connector_declares_what_it_gives(word: str, build_small: Build) -> None:
    connector = build_small("connector", word)
    assert connector(torch.randn(2, 16, 24)).shape == (2, connector.num_tokens, 40)


@every("text_decoder")
def test_text_decoder_declares_what_it_gives(word: str, build_small: Build) -> None:
    decoder = build_small("text_decoder", word)
    embeds = decoder.embed(torch.tensor([[1, 2, 49]]))
    hidden = decoder(embeds)
    assert embeds.shape == hidden.shape == (1, 3, decoder.dim)
    assert decoder.logits(hidden).shape == (1, 3, decoder.vocab_size)
    assert decoder.vocab_size >= 50


@every("visual_head")
def test_visual_head_declares_what_it_gives(word: str, build_small: Build) -> None:
    head = build_small("visual_head", word).eval()
    tokens, states = torch.randn(2, 16, 24), torch.randn(2, 16, 40)
    assert head.num_tokens == 16
    assert head.embed(tokens).shape == (2, 16, 40)
    assert head(states).shape == (2, 16, 24)
    assert head.loss(states, tokens).shape == (2,)
    torch.testing.assert_close(head.embed(tokens)[:, 5:6], head.embed(tokens[:, 5:6], first=5))


@every("image_decoder")
def test_image_decoder_samples_pixels_by_the_generator(word: str, build_small: Build) -> None:
    decoder = build_small("image_decoder", word).eval()
    tokens = torch.randn(2, 16, 24)
    assert decoder.loss(tokens, torch.rand(2, 3, 32, 32)).shape == (2,)
    torch.manual_seed(5)
    first = decoder.sample(tokens, torch.Generator().manual_seed(3))
    torch.manual_seed(6)
    again = decoder.sample(tokens, torch.Generator().manual_seed(3))
    assert first.shape == (2, 3, 32, 32)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)


@every("image_decoder")
def test_image_decoder_learns_one_batch(word: str, build_small: Build) -> None:
    decoder = build_small("image_decoder", word)
    tokens = torch.randn(8, 16, 24)
    colours = tokens[..., :3].sigmoid().transpose(1, 2).unflatten(2, (4, 4))  # (B, 3, 4, 4)
    pixels = nn.functional.interpolate(colours, scale_factor=8)  # a token is the colour of its patch
    optimiser = torch.optim.Adam(decoder.parameters(), 4e-3)
    for _ in range(80):
        optimiser.zero_grad()
        decoder.loss(tokens, pixels).mean().backward()
        optimiser.step()
    drawn = decoder.eval().sample(tokens, torch.Generator().manual_seed(0))
    assert (drawn - pixels).square().mean() < 0.6 * (pixels.mean() - pixels).square().mean()
