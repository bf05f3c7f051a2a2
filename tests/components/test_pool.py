"""Pooling connectors: what each token is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lab.errors import LabError
from lab.registry import build

Build = Callable[..., Any]


def test_a_constant_image_gives_one_constant(build_small: Build) -> None:
    connector = build_small("connector", "pool", grid=3)  # regions of a 4 x 4 grid that overlap
    token = torch.randn(1, 1, 24)
    tokens = connector(token.expand(1, 16, 24))
    torch.testing.assert_close(tokens, connector.layers(token).expand(1, 9, 40))


def test_average_is_that_of_the_region(build_small: Build) -> None:
    connector = build_small("connector", "pool")
    tokens = torch.randn(1, 16, 24)
    top_right = tokens[:, [2, 3, 6, 7]].mean(dim=1)
    torch.testing.assert_close(connector(tokens)[:, 1], connector.layers(top_right))


def test_concat_equals_the_merger_of_qwen2_vl(build_small: Build) -> None:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger

    theirs = PatchMerger(40, 24)
    ours = build_small("connector", "pool", mode="concat", norm=True, hidden_dim=4 * 24)
    ours.norm.load_state_dict(theirs.ln_q.state_dict())
    ours.layers.load_state_dict(theirs.mlp.state_dict())
    tokens = torch.randn(2, 16, 24)
    # theirs is given the four tokens of a window one after the other
    order = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    expected = theirs(tokens[:, order].flatten(0, 1)).view(2, 4, 40)
    torch.testing.assert_close(ours(tokens), expected, atol=1e-5, rtol=0)


def test_raster_joins_tokens_that_follow_one_another(build_small: Build) -> None:
    """MiniGPT-v2: four tokens of a row, then a single linear map."""
    connector = build_small("connector", "pool", mode="raster", hidden_dim=0)
    tokens = torch.randn(1, 16, 24)
    assert len(connector.layers) == 1
    torch.testing.assert_close(connector(tokens)[:, 2], connector.layers(tokens[:, 8:12].flatten(1)))


@pytest.mark.parametrize("word", ["pool", "abstractor"])
def test_grid_is_what_comes_out_whatever_comes_in(word: str) -> None:
    for tokens in (9, 25, 64):
        connector = build("connector", {"name": word, "grid": 3}, 24, 40, tokens)
        assert connector(torch.randn(2, tokens, 24)).shape == (2, connector.num_tokens, 40) == (2, 9, 40)


@pytest.mark.parametrize(("mode", "grid"), [("average", 5), ("average", 0), ("concat", 3), ("raster", 3)])
def test_grids_that_cannot_be_made_are_refused(mode: str, grid: int, build_small: Build) -> None:
    with pytest.raises(LabError, match=f"'{mode}' cannot bring a grid of side 4 to side {grid}"):
        build_small("connector", "pool", mode=mode, grid=grid)
