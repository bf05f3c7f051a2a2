"""Encoders: pretrained towers equal transformers' own, patches keep their places, bad settings are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.layers.pretrained import architectures
from components.layers.resize import resize_tokens
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


WORDS = {"clip": "clip", "siglip": "siglip", "dinov2": "dinov2", "dinov2_with_registers": "dinov2"}


@pytest.mark.parametrize("resolution", [24, 40, 20])  # 3 x 3 patches, the checkpoint's own; 5 x 5; 2 x 2
@pytest.mark.parametrize("family", WORDS)
def test_tower_at_any_resolution_equals_transformers(
    family: str, resolution: int, build_small: Build, checkpoints: Callable[[str], Path]
) -> None:
    import transformers

    ours = build_small("encoder", WORDS[family], path=family, layer=-1, resolution=resolution).eval()
    theirs = getattr(transformers, TOWERS[family]).from_pretrained(checkpoints(family)).eval()
    pixels = torch.rand(2, 3, resolution, resolution)
    interpolate = {} if "dinov2" in family else {"interpolate_pos_encoding": True}
    expected = theirs((pixels - ours.mean) / ours.deviation, output_hidden_states=True, **interpolate)
    rows = resolution // 8
    assert ours.grid == (rows, rows)
    torch.testing.assert_close(ours(pixels), expected.hidden_states[-1][:, -(rows**2) :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["clip", "dinov2", "dinov2_with_registers"])
def test_class_token_is_kept_without_registers(
    family: str, build_small: Build, checkpoints: Callable[[str], Path]
) -> None:
    import transformers

    ours = build_small("encoder", WORDS[family], path=family, layer=-1, keep_class=True).eval()
    theirs = getattr(transformers, TOWERS[family]).from_pretrained(checkpoints(family)).eval()
    pixels = torch.rand(2, 3, 24, 24)
    hidden = theirs((pixels - ours.mean) / ours.deviation, output_hidden_states=True).hidden_states[-1]
    assert (ours.num_tokens, ours.grid) == (10, None)
    expected = torch.cat([hidden[:, :1], hidden[:, -9:]], dim=1)
    torch.testing.assert_close(ours(pixels), expected, atol=1e-5, rtol=0)


def test_pooled_tokens_are_interpolated_before_they_are_normalised(build_small: Build) -> None:
    plain = build_small("encoder", "siglip", resolution=32).eval()
    ours = build_small("encoder", "siglip", resolution=32, pool=2, normalise=True).eval()
    pixels = torch.rand(2, 3, 32, 32)
    tokens = plain(pixels).unflatten(1, (2, 2, 2, 2)).mean(dim=(2, 4)).flatten(1, 2)  # means of 2 x 2
    assert (ours.num_tokens, ours.grid) == (4, (2, 2))
    torch.testing.assert_close(ours(pixels), tokens / tokens.norm(dim=2, keepdim=True), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(pixels).norm(dim=2), torch.ones(2, 4))


def test_class_token_stands_before_pooled_tokens(build_small: Build) -> None:
    plain = build_small("encoder", "clip", keep_class=True).eval()
    ours = build_small("encoder", "clip", keep_class=True, pool=1).eval()
    pixels = torch.rand(2, 3, 24, 24)
    assert ours(pixels).shape == (2, ours.num_tokens, ours.dim) == (2, 2, 32)
    assert torch.equal(ours(pixels)[:, 0], plain(pixels)[:, 0])


def test_resampled_tokens_are_read_at_the_centres_of_the_new_cells() -> None:
    """A linear function of the place stays itself: MetaMorph's 27 x 27 to 8 x 8, corners not aligned."""
    centres = (torch.arange(27) + 0.5) / 27
    places = torch.cartesian_prod(centres, centres)[None]  # (1, 27 * 27, 2)
    new = (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(resize_tokens(places, (27, 27), (8, 8)), torch.cartesian_prod(new, new)[None])


@pytest.mark.parametrize("family", WORDS)
def test_tower_is_built_from_its_configuration_alone(
    family: str, build_small: Build, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded = build_small("encoder", WORDS[family], path=family, resolution=40, pool=2, normalise=True)
    config = (checkpoints(family) / "config.json").read_text()
    (tmp_path / "someone--tower.json").write_text(config)
    spec = {"name": WORDS[family], "path": "someone/tower", "resolution": 40, "pool": 2, "normalise": True}
    with architectures(tmp_path), torch.device("meta"):
        outline = build("encoder", spec, 32)
        tokens = outline(torch.rand(2, 3, 32, 32))
    shapes = {name: value.shape for name, value in loaded.state_dict().items()}
    assert {name: value.shape for name, value in outline.state_dict().items()} == shapes
    assert tokens.shape == (2, loaded.num_tokens, loaded.dim) == (2, 4, 32)


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


@pytest.mark.parametrize(
    ("word", "settings", "message"),
    [
        ("siglip", {"path": "clip"}, "is a clip model; the vision towers known are siglip$"),
        ("dinov2", {"path": "siglip"}, "is a siglip model; .* dinov2, dinov2_with_registers$"),
        ("clip", {"path": "siglip", "keep_class": True}, "siglip model, which has no class token"),
        ("clip", {"resolution": 7}, "resolution 7 is less than a patch of 8"),
        ("clip", {"pool": 4}, "pool 4 is outside the 3 rows of tokens: 1 to 3"),
        ("dinov2", {"pool": 0}, "pool 0 is outside the 3 rows"),
    ],
)
def test_a_tower_refuses_what_it_cannot_do(
    word: str, settings: dict[str, Any], message: str, build_small: Build
) -> None:
    with pytest.raises(LabError, match=message):
        build_small("encoder", word, **settings)


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
