"""A vision tower from its configuration, without a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.errors import LabError
from lab.registry import build

WORDS = {"clip": "clip", "siglip": "siglip", "dinov2": "clip"}
Checkpoints = Callable[[str], Path]


def settings(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its sizes."""
    stated = json.loads((folder / "config.json").read_text())
    sizes = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
        "model_type",
    )
    inner = {} if stated["model_type"] == "dinov2" else {"intermediate_size": stated["intermediate_size"]}
    return {name: stated[name] for name in sizes} | inner


@pytest.mark.parametrize("family", WORDS)
def test_a_configuration_gives_the_tower_of_a_checkpoint(family: str, checkpoints: Checkpoints) -> None:
    folder = checkpoints(family)
    given = {"name": WORDS[family], "layer": -2, "resolution": 40}
    loaded = build("encoder", {**given, "path": str(folder)}, 32).eval()
    made = build("encoder", {**given, "config": settings(folder)}, 32).eval()
    made.load_state_dict(loaded.state_dict())
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(made(pixels), loaded(pixels))


def test_statistics_of_pixels_can_be_stated(checkpoints: Checkpoints) -> None:
    stated = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    encoder = build("encoder", {"name": "clip", "config": settings(checkpoints("clip")) | stated}, 32)
    assert encoder.mean.flatten().tolist() == pytest.approx(stated["image_mean"])
    assert encoder.deviation.flatten().tolist() == pytest.approx(stated["image_std"])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "clap_vision"}, "config: model_type 'clap_vision' is no model of transformers"),
        ({"model_type": "bert"}, "'config' is a bert model; the vision towers known are clip, siglip"),
        ({"model_type": "clip_vision_model", "width": 3}, "config: clip_vision_model has no setting width"),
    ],
)
def test_wrong_configurations_are_named(config: dict[str, Any], said: str) -> None:
    with pytest.raises(LabError, match=said):
        build("encoder", {"name": "clip", "config": config}, 32)
