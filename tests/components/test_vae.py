"""The two halves of an AutoencoderKL: equal to diffusers', tokens in patches, and of about unit deviation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lab.errors import LabError
from lab.registry import build


def encoder(**settings: Any) -> Any:
    return build("encoder", {"name": "vae", **settings}, 32)


def decoder(dim: int, tokens: int, **settings: Any) -> Any:
    return build("image_decoder", {"name": "vae", **settings}, dim, tokens, 32)


@pytest.fixture(params=["Stable Diffusion 1", "Stable Diffusion 3"])
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An AutoencoderKL of diffusers in a pipeline's folder; the later kind shifts and has no 1 x 1 maps."""
    from diffusers import AutoencoderKL

    later = request.param == "Stable Diffusion 3"
    model = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.5305 if later else 0.18215,
        shift_factor=0.0609 if later else None,
        use_quant_conv=not later,
        use_post_quant_conv=not later,
    ).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "vae")
    return model


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2])
def test_both_halves_equal_the_model_of_diffusers(reference: Any, tmp_path: Path, patch: int) -> None:
    where = {"path": str(tmp_path), "subfolder": "vae", "patch": patch}
    one = encoder(**where).eval()
    other = decoder(4 * patch**2, 64 // patch**2, **where).eval()
    pixels = torch.rand(2, 3, 32, 32)
    latents = reference.encode(pixels * 2 - 1).latent_dist.mode()  # (2, 4, 8, 8)
    config = reference.config
    scaled = (latents - (config.shift_factor or 0)) * config.scaling_factor
    tokens = one(pixels)
    assert tokens.shape == (2, one.num_tokens, one.dim) == (2, 64 // patch**2, 4 * patch**2)
    rows = 8 // patch
    for place in range(one.num_tokens):
        row, column = place // rows * patch, place % rows * patch
        block = scaled[:, :, row : row + patch, column : column + patch]
        torch.testing.assert_close(tokens[:, place], block.flatten(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other(tokens), reference.decode(latents).sample, atol=1e-5, rtol=1e-5)


def test_stated_scale_replaces_the_checkpoints(reference: Any, tmp_path: Path) -> None:
    where = {"path": str(tmp_path), "subfolder": "vae", "scale": 0.5}
    one, other = encoder(**where).eval(), decoder(4, 64, **where).eval()
    pixels = torch.rand(1, 3, 32, 32)
    latents = reference.encode(pixels * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(one(pixels), latents.flatten(2).transpose(1, 2) / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other(one(pixels)), reference.decode(latents).sample, atol=1e-5, rtol=1e-5)


def test_divergence_is_that_of_diffusers_and_tokens_are_drawn(reference: Any, tmp_path: Path) -> None:
    one = encoder(path=str(tmp_path), subfolder="vae", kl=0.5)
    pixels = torch.rand(3, 3, 32, 32)
    posterior = reference.encode(pixels * 2 - 1).latent_dist
    drawn = [one.autoencode(pixels) for _ in range(2)]
    torch.testing.assert_close(drawn[0][1], 0.5 * posterior.kl())
    assert not torch.allclose(drawn[0][0], drawn[1][0])
    torch.manual_seed(4)
    tokens, _ = one.autoencode(pixels)
    torch.manual_seed(4)
    latents = (posterior.sample() - one.shift) * one.scale
    torch.testing.assert_close(tokens, latents.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.eval().autoencode(pixels)[0], one(pixels))


@torch.no_grad()
@pytest.mark.parametrize(("downsample", "width"), [(4, 12), (8, 48)])
def test_halves_agree_on_a_coarse_image_before_training(downsample: int, width: int) -> None:
    one = encoder(downsample=downsample, latent_channels=width).eval()
    other = decoder(one.dim, one.num_tokens).eval()
    coarse = torch.rand(4, 3, 6, 6)
    pixels = nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
    tokens = one(pixels)
    assert (other.sample(tokens) - pixels).square().mean() < 0.2 * pixels.var()
    plain = decoder(one.dim, one.num_tokens, shortcut=False).eval()
    assert (plain.sample(tokens) - pixels).square().mean() > pixels.var()


def test_divergence_draws_the_latents_to_unit_deviation() -> None:
    one = encoder(downsample=8, latent_channels=6, kl=0.02)
    other = decoder(one.dim, one.num_tokens)
    one.shortcut.weight.data.mul_(4)  # far too large at first
    other.shortcut.weight.data.div_(4)
    optimiser = torch.optim.AdamW([*one.parameters(), *other.parameters()], 1e-2)
    colours = torch.rand(8, 3, 4, 4)
    pixels = nn.functional.interpolate(colours, (32, 32))
    before = one(pixels).std()
    for _ in range(40):
        tokens, loss = one.autoencode(pixels)
        optimiser.zero_grad()
        (other.loss(tokens, pixels) + loss).mean().backward()
        optimiser.step()
    assert before > 3
    assert one(pixels).std() < 1.2


@pytest.mark.parametrize(
    ("role", "settings", "message"),
    [
        ("encoder", {"patch": 3}, "not a multiple of downsample 8 times patch 3"),
        ("encoder", {"downsample": 12}, "not divided by 12"),
        ("image_decoder", {"patch": 4}, "tokens of width 24 are not 4 x 4 latents"),
        ("image_decoder", {"patch": 3}, "image_size 32 is not a multiple of 12 rows of latents"),
    ],
)
def test_impossible_shapes_are_refused(role: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        build(role, {"name": "vae", **settings}, *((32,) if role == "encoder" else (24, 16, 32)))


def test_checkpoints_that_do_not_fit_are_refused(reference: Any, tmp_path: Path) -> None:
    where = {"path": str(tmp_path), "subfolder": "vae"}
    with pytest.raises(LabError, match="decodes latents of width 4, 4 pixels a side, not of width 8 and 4"):
        decoder(8, 64, **where)
    with pytest.raises(LabError, match="decodes latents of width 4, 4 pixels a side, not of width 4 and 8"):
        decoder(4, 16, **where)
