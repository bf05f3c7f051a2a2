"""Space to depth: nothing is lost, and the order is that of public implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from components.layers.grid import space_to_depth
from lab.errors import LabError

Build = Callable[..., Any]


def test_the_rearrangement_is_invertible() -> None:
    tokens = torch.randn(2, 36, 5)
    windows = space_to_depth(tokens, 3)  # 2 x 2 windows of 3 x 3 tokens
    back = torch.zeros(2, 6, 6, 5)
    for row in range(6):
        for column in range(6):
            place = (row % 3) * 3 + column % 3
            back[:, row, column] = windows[:, row // 3 * 2 + column // 3, place * 5 : place * 5 + 5]
    assert windows.shape == (2, 4, 45)
    assert torch.equal(back.flatten(1, 2), tokens)


def test_linear_equals_idefics3_of_transformers(build_small: Build) -> None:
    from transformers import Idefics3Config
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    theirs = Idefics3Connector(
        Idefics3Config(
            scale_factor=2,
            vision_config={"hidden_size": 24},
            text_config={"model_type": "llama", "hidden_size": 40, "num_attention_heads": 4},
        )
    )
    ours = build_small("connector", "pixel_shuffle")
    ours.project[0].weight.data = theirs.modality_projection.proj.weight.data.clone()
    tokens = torch.randn(3, 16, 24)
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-5, rtol=0)


def test_mlp_equals_internvl_of_transformers(build_small: Build) -> None:
    from transformers import InternVLConfig
    from transformers.models.internvl import modeling_internvl as reference

    small = {"num_hidden_layers": 1, "num_attention_heads": 4}
    projector = reference.InternVLMultiModalProjector(
        InternVLConfig(
            vision_config={"hidden_size": 24, "intermediate_size": 24, **small},
            text_config={"model_type": "qwen2", "hidden_size": 40, **small},
        )
    )
    ours = build_small("connector", "pixel_shuffle", projection="mlp")
    for mine, name in ((0, "layer_norm"), (1, "linear_1"), (3, "linear_2")):
        ours.project[mine].load_state_dict(projector.get_submodule(name).state_dict())
    tokens = torch.randn(3, 16, 24)
    grid: Tensor = reference.InternVLModel.pixel_shuffle(None, tokens.view(3, 4, 4, 24), 0.5)
    torch.testing.assert_close(ours(tokens), projector(grid.flatten(1, 2)), atol=1e-5, rtol=0)


def test_factor_says_how_many_tokens_come_out(build_small: Build) -> None:
    assert [build_small("connector", "pixel_shuffle", factor=f).num_tokens for f in (1, 2, 4)] == [16, 4, 1]


@pytest.mark.parametrize("factor", [0, 3])
def test_windows_that_do_not_tile_the_grid_are_refused(factor: int, build_small: Build) -> None:
    with pytest.raises(LabError, match=f"windows of side {factor} do not tile a grid of side 4"):
        build_small("connector", "pixel_shuffle", factor=factor)


@pytest.mark.parametrize("word", ["pixel_shuffle", "pool", "abstractor"])
def test_tokens_that_make_no_square_are_refused(word: str) -> None:
    from lab.registry import build

    with pytest.raises(LabError, match="12 tokens make no square grid"):
        build("connector", word, 24, 40, 12)
