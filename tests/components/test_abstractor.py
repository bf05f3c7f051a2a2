"""The C-Abstractor, and what connectors keep of locality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lab.errors import LabError
from lab.registry import build

Build = Callable[..., Any]


def test_it_is_built_as_honeybee_says(build_small: Build) -> None:
    """Two stages of three blocks, each with squeeze-and-excitation, SiLU and layer norms; pool between."""
    from timm.layers import SqueezeExcite
    from timm.layers.norm_act import LayerNormAct2d

    connector = build_small("connector", "abstractor", grid=2, dim=16)
    first, pool, second = connector.layers
    for stage, width in ((first, 24), (second, 16)):
        blocks = list(stage.children())
        assert len(blocks) == 3
        assert blocks[0].conv1.conv.in_channels == width
        for block in blocks:
            assert isinstance(block.se, SqueezeExcite)
            assert isinstance(block.conv2.bn, LayerNormAct2d)
            assert isinstance(block.conv2.bn.act, nn.SiLU)
    tokens = torch.randn(2, 16, 24)
    image = (tokens + connector.positions).transpose(1, 2).reshape(2, 24, 4, 4)
    pooled = nn.functional.avg_pool2d(first(image), 2)
    expected = connector.project(second(pooled).permute(0, 2, 3, 1).flatten(1, 2))
    assert isinstance(pool, nn.AdaptiveAvgPool2d)
    torch.testing.assert_close(connector(tokens), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("spec", "least", "most"),
    [
        ({"name": "abstractor", "grid": 4, "dim": 32}, 1.7, 16),  # convolutions look over the border
        ({"name": "pool", "grid": 4}, 16, 16),
        ({"name": "pool", "grid": 4, "mode": "concat"}, 16, 16),
        ({"name": "pixel_shuffle", "factor": 4}, 16, 16),
        ({"name": "perceiver"}, 0, 1.4),
        ({"name": "q_former"}, 0, 1.4),
        ({"name": "causal_transformer"}, 0, 1.4),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_local_connectors_read_a_token_from_its_region(
    spec: dict[str, Any], least: float, most: float
) -> None:
    """How much more of token 5's gradient, of 4 x 4, falls on its region than on the average one."""
    connector = build("connector", spec, 24, 40, 256)
    tokens = torch.randn(4, 256, 24, requires_grad=True)
    connector(tokens)[:, 5].square().sum().backward()
    assert tokens.grad is not None
    size = tokens.grad.norm(dim=2).mean(dim=0).view(16, 16)
    assert least - 1e-4 <= 16 * float(size[4:8, 4:8].sum() / size.sum()) <= most + 1e-4


def test_impossible_sizes_are_refused(build_small: Build) -> None:
    with pytest.raises(LabError, match="grid 5 is not between 1 and the side 4"):
        build_small("connector", "abstractor", grid=5)
    with pytest.raises(LabError, match="depth must be at least 1"):
        build_small("connector", "abstractor", depth=0)
