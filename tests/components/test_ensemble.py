"""Ensembles of encoders: tokens of one place meet in one token, or sequences follow each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lab.errors import LabError
from lab.registry import build

VIT = {"name": "vit", "dim": 32, "depth": 1}
PATCHES = {"name": "patches", "dim": 24}
FINE = {"name": "patches", "dim": 24, "patch_size": 4}  # 8 x 8 tokens


def ensemble(*parts: Any, **settings: Any) -> Any:
    return build("encoder", {"name": "ensemble", "parts": list(parts), **settings}, 32).eval()


def test_channels_of_one_place_are_joined() -> None:
    encoder, pixels = ensemble(VIT, PATCHES), torch.rand(2, 3, 32, 32)
    assert (encoder.dim, encoder.num_tokens, encoder.grid, encoder.image_size) == (56, 16, (4, 4), 32)
    assert torch.equal(encoder(pixels)[..., :32], encoder.parts[0](pixels))
    assert torch.equal(encoder(pixels)[..., 32:], encoder.parts[1](pixels))


def test_grids_follow_the_first_part() -> None:
    encoder, pixels = ensemble(PATCHES, FINE), torch.rand(2, 3, 32, 32)
    assert (encoder.dim, encoder.num_tokens, encoder.grid) == (48, 16, (4, 4))
    fine = encoder.parts[1](pixels).unflatten(1, (4, 2, 4, 2)).mean(dim=(2, 4)).flatten(1, 2)  # of 2 x 2
    torch.testing.assert_close(encoder(pixels)[..., 24:], fine)
    assert ensemble(FINE, PATCHES).grid == (8, 8)


def test_sequences_follow_each_other() -> None:
    encoder, pixels = ensemble(PATCHES, FINE, join="sequence"), torch.rand(2, 3, 32, 32)
    assert (encoder.dim, encoder.num_tokens, encoder.grid) == (24, 16 + 64, None)
    assert torch.equal(encoder(pixels)[:, :16], encoder.parts[0](pixels))
    assert torch.equal(encoder(pixels)[:, 16:], encoder.parts[1](pixels))


def test_words_alone_are_parts_and_parts_may_repeat() -> None:
    encoder = ensemble("patches", "patches", PATCHES)
    assert encoder.dim == 128 + 128 + 24
    assert len({id(part) for part in encoder.parts}) == 3


def test_parts_without_a_grid_are_joined_by_number() -> None:
    row = {"name": "ensemble", "parts": [PATCHES], "join": "sequence"}  # 16 tokens, no grid
    encoder = ensemble(PATCHES, row)
    assert (encoder.dim, encoder.num_tokens, encoder.grid) == (48, 16, None)
    with pytest.raises(LabError, match=r"a grid in every part or one count of tokens, not 64, 16"):
        ensemble(FINE, row)


def test_built_without_values_it_has_the_same_sizes() -> None:
    with torch.device("meta"):
        outline = ensemble(VIT, FINE)
    assert (outline.dim, outline.num_tokens, outline.grid) == (56, 16, (4, 4))


@pytest.mark.parametrize(
    ("parts", "settings", "message"),
    [
        ([VIT, PATCHES], {"join": "sequence"}, "join sequence needs parts of one width, not 32, 24"),
        ([], {}, "parts: expected at least one encoder"),
        (["vti"], {}, "parts: no encoder 'vti' .did you mean 'vit'"),
        ([{"dim": 3}], {}, "parts: no encoder 'None'"),
        ([{"name": "vit", "detph": 1}], {}, "parts: vit has no setting 'detph' .did you mean 'depth'"),
        ([VIT, {"name": "patches", "patch_size": 5}], {}, "parts: patches: image_size 32 is not a multiple"),
        ([VIT, 4], {}, "parts: no encoder '4'"),
    ],
)
def test_what_cannot_be_joined_is_named(parts: list[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        ensemble(*parts, **settings)
