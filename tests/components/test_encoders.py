"""Encoders: pretrained towers equal transformers' own, patches keep their places, bad settings are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.errors import LabError
from lab.registry import build

Build = Callable[..., Any]
TOWERS = {
    "clip": "CLIPVisionModel",
    "whole_clip": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
}


@pytest.mark.parametrize("layer", [-2, -1, 1])
@pytest.mark.parametrize("family", TOWERS)
def test_tower_equals_transformers(
    family: str, layer: int, build_small: Build, checkpoints: Callable[[str], Path]
) -> None:
    import transformers

    ours = build_small("encoder", "clip", path=family, layer=layer).eval()
    theirs = getattr(transformers, TOWERS[family]).from_pretrained(checkpoints(family)).eval()
    pixels = torch.rand(2, 3, 24, 24)
    expected = theirs((pixels - ours.mean) / ours.deviation, output_hidden_states=True).hidden_states[layer]
    assert ours.grid == (3, 3)
    torch.testing.assert_close(ours(pixels), expected[:, -9:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", TOWERS)
def test_every_weight_of_a_tower_is_used(family: str, build_small: Build) -> None:
    encoder = build_small("encoder", "clip", path=family)
    encoder(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_tower_resizes_to_its_own_size(build_small: Build) -> None:
    encoder = build_small("encoder", "clip").eval()
    grey = torch.full((1, 3, 1, 1), 0.4)
    torch.testing.assert_close(
        encoder(grey.expand(1, 3, 50, 50)), encoder(grey.expand(1, 3, 24, 24)), atol=1e-5, rtol=0
    )


def test_pixel_statistics_come_from_the_checkpoint(
    checkpoints: Callable[[str], Path], tmp_path: Path, build_small: Build
) -> None:
    assert build_small("encoder", "clip", path="siglip").mean.flatten().tolist() == [0.5] * 3
    assert build_small("encoder", "clip").mean.flatten()[0].item() == pytest.approx(0.48145466)

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoints("clip") / name).read_bytes())
    stated = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    encoder = build("encoder", {"name": "clip", "path": str(tmp_path)}, 32)
    assert encoder.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert encoder.deviation.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_what_cannot_be_loaded_is_named(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no folder .*nowhere.*config\.json"):
        build("encoder", {"name": "clip", "path": str(tmp_path / "nowhere")}, 32)
    with pytest.raises(LabError, match="is a gpt2 model; the vision towers known are clip, siglip"):
        build("encoder", {"name": "clip", "path": str(checkpoints("gpt2"))}, 32)
    with pytest.raises(LabError, match="layer -9 is outside the tower's 3"):
        build("encoder", {"name": "clip", "path": str(checkpoints("clip")), "layer": -9}, 32)


def test_a_patch_reaches_its_own_token_only(build_small: Build) -> None:
    encoder = build_small("encoder", "patches").eval()
    pixels = torch.rand(1, 3, 32, 32)
    before = encoder(pixels)
    pixels[:, :, 8:16, 16:24] = 0  # second row, third column
    changed = (encoder(pixels) != before).any(dim=2)[0]
    assert changed.nonzero().flatten().tolist() == [6]


@pytest.mark.parametrize("stem", ["linear", "conv"])
@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_both_stems_give_the_same_grid(stem: str, patch_size: int, build_small: Build) -> None:
    encoder = build_small("encoder", "vit", stem=stem, patch_size=patch_size)
    rows = 32 // patch_size
    assert encoder.grid == (rows, rows)
    assert encoder(torch.rand(1, 3, 32, 32)).shape == (1, rows**2, 32)


@pytest.mark.parametrize(
    ("word", "settings", "message"),
    [
        ("vit", {"patch_size": 5}, "image_size 32 is not a multiple of patch_size 5"),
        ("vit", {"dim": 30}, "dim 30 is not a multiple of num_heads 4"),
        ("vit", {"dim": 12, "patch_size": 32}, "must be a power of 2"),
        ("patches", {"patch_size": 7}, "image_size 32 is not a multiple of patch_size 7"),
    ],
)
def test_impossible_settings_are_refused(
    word: str, settings: dict[str, int], message: str, build_small: Build
) -> None:
    with pytest.raises(LabError, match=message):
        build_small("encoder", word, **settings)
