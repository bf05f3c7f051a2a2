"""Backbones of timm: features equal timm's own, weights load whole or not at all, bad settings are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from lab.errors import LabError
from lab.registry import build

Build = Callable[..., Any]
# classes and channels: first, last, or no class token at all
MODELS = ["test_vit", "vit_wee_patch16_reg1_gap_256", "test_resnet", "test_convnext", "test_mambaout"]


def encoder(model: str, image_size: int = 32, **settings: Any) -> Any:
    return build("encoder", {"name": "timm", "model": model, **settings}, image_size)


def theirs(model: str, ours: Any, size: int = 32, **settings: Any) -> Any:
    """The same backbone from timm, with the same weights where both have them."""
    fixed = {"img_size": size} if timm.get_pretrained_cfg(model).fixed_input_size else {}
    backbone = timm.create_model(model, **fixed, **settings).eval()
    backbone.load_state_dict(ours.model.state_dict(), strict=False)
    return backbone


def normalised(ours: Any, pixels: Tensor) -> Tensor:
    cfg = ours.model.pretrained_cfg
    return (pixels - torch.tensor(cfg["mean"]).view(3, 1, 1)) / torch.tensor(cfg["std"]).view(3, 1, 1)


def raster(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model at its own 160 pixels, and a file of its weights."""
    torch.manual_seed(3)
    model = timm.create_model("test_vit").eval()
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(model.state_dict(), file)
    return model, file


@pytest.mark.parametrize("model", MODELS)
def test_features_equal_timm(model: str) -> None:
    ours = encoder(model, 64).eval()
    pixels = torch.rand(2, 3, 64, 64)
    backbone = theirs(model, ours, 64)
    features = backbone.forward_features(normalised(ours, pixels))
    if features.ndim == 3:
        features = features[:, backbone.num_prefix_tokens :]
    elif model == "test_mambaout":
        features = features.flatten(1, 2)
    else:
        features = raster(features)
    assert torch.equal(ours(pixels), features)
    assert ours.grid is not None
    assert ours.grid[0] * ours.grid[1] == ours.num_tokens


@pytest.mark.parametrize("layer", [0, 1, -2, -1])
@pytest.mark.parametrize("model", MODELS)
def test_intermediate_features_equal_timm(model: str, layer: int) -> None:
    ours = encoder(model, 64, layer=layer).eval()
    pixels = torch.rand(2, 3, 64, 64)
    expected = theirs(model, ours, 64).forward_intermediates(
        normalised(ours, pixels), indices=[layer], intermediates_only=True
    )
    assert torch.equal(ours(pixels), raster(expected[0]))
    assert ours.grid == tuple(expected[0].shape[2:])


@pytest.mark.parametrize("layer", [None, -2])
def test_class_token_is_kept_without_registers(layer: int | None) -> None:
    settings = {"reg_tokens": 3}
    ours = encoder("test_vit", 64, layer=layer, keep_class=True, settings=settings).eval()
    plain = encoder("test_vit", 64, layer=layer, settings=settings).eval()
    plain.load_state_dict(ours.state_dict())
    pixels = torch.rand(2, 3, 64, 64)
    assert (ours.num_tokens, ours.grid, plain.num_tokens) == (17, None, 16)
    assert torch.equal(ours(pixels)[:, 1:], plain(pixels))
    if layer is None:
        backbone = theirs("test_vit", ours, 64, **settings)
        assert torch.equal(ours(pixels)[:, 0], backbone.forward_features(normalised(ours, pixels))[:, 0])


@pytest.mark.parametrize("layer", [None, 0, -1])
@pytest.mark.parametrize("model", [*MODELS, "test_vit3", "test_efficientnet"])
def test_what_the_tokens_do_not_depend_on_is_not_kept(model: str, layer: int | None) -> None:
    ours = encoder(model, 64, layer=layer)
    ours(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, p in ours.named_parameters() if p.grad is None]


def test_what_runs_is_kept_though_the_tokens_do_not_depend_on_it() -> None:
    ours = encoder("hrnet_w18_small", 64, layer=1)  # runs all its branches whatever is asked for
    assert ours(torch.rand(2, 3, 64, 64)).shape == (2, ours.num_tokens, ours.dim) == (2, 256, 128)


def test_pixels_are_normalised_and_resized_for_the_model() -> None:
    ours = encoder("test_efficientnet", resolution=64)
    assert ours.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert ours.deviation.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert encoder("test_vit").mean.flatten().tolist() == [0.5] * 3
    assert (ours.image_size, ours.grid) == (32, (2, 2))
    ours, grey = ours.eval(), torch.full((1, 3, 1, 1), 0.4)
    torch.testing.assert_close(
        ours(grey.expand(1, 3, 32, 32)), ours(grey.expand(1, 3, 64, 64)), atol=1e-5, rtol=1e-5
    )


def test_checkpoint_at_its_own_size_is_the_same_model(trained: tuple[Any, Path]) -> None:
    model, file = trained
    ours = encoder("test_vit", 160, checkpoint=str(file)).eval()
    pixels = torch.rand(1, 3, 160, 160)
    assert torch.equal(ours(pixels), model.forward_features(normalised(ours, pixels))[:, 1:])


def test_positions_of_a_checkpoint_are_interpolated(trained: tuple[Any, Path]) -> None:
    model, file = trained
    ours = encoder("test_vit", 32, resolution=64, checkpoint=str(file))
    expected = resample_abs_pos_embed(model.pos_embed, new_size=[4, 4], num_prefix_tokens=1)
    assert torch.equal(ours.model.pos_embed, expected)
    assert torch.equal(ours.model.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)


def test_folder_that_timm_saved_is_a_model(trained: tuple[Any, Path], tmp_path: Path) -> None:
    from timm.models import save_for_hf

    model, _ = trained
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    ours = encoder(f"local-dir:{tmp_path}", 160, pretrained=True)
    assert torch.equal(ours.model.pos_embed, model.pos_embed)
    assert not torch.equal(encoder(f"local-dir:{tmp_path}", 160).model.pos_embed, model.pos_embed)


def test_checkpoint_must_have_every_weight(trained: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = trained
    weights = {name: value for name, value in model.state_dict().items() if "blocks.1." not in name}
    save_file(weights, tmp_path / "half.safetensors")
    with pytest.raises(LabError, match=r"cannot make 'test_vit'.*Missing key.*blocks\.1"):
        encoder("test_vit", 160, checkpoint=str(tmp_path / "half.safetensors"))

    headless = {name: value for name, value in model.state_dict().items() if "head." not in name}
    save_file(headless, tmp_path / "headless.safetensors")
    ours = encoder(
        "test_vit", 160, checkpoint=str(tmp_path / "headless.safetensors"), settings={"num_classes": 0}
    )
    assert torch.equal(ours.model.pos_embed, model.pos_embed)


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("model", ["test_vit", "test_convnext"])
def test_built_without_values_it_has_the_same_sizes(
    model: str, layer: int | None, trained: tuple[Any, Path]
) -> None:
    real = encoder(model, layer=layer)
    with torch.device("meta"):
        outline = encoder(model, layer=layer, pretrained=True)  # where nothing is loaded
    assert {p.device.type for p in outline.parameters()} == {"meta"}
    shapes = {name: value.shape for name, value in real.state_dict().items()}
    assert {name: value.shape for name, value in outline.state_dict().items()} == shapes
    assert (outline.dim, outline.num_tokens, outline.grid) == (real.dim, real.num_tokens, real.grid)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet_18"}, "timm has no model 'resnet_18' .did you mean 'resnet18"),
        ({"model": "test_vit.nowhere"}, "cannot make 'test_vit.nowhere'"),
        ({"settings": {"depht": 3}}, "unexpected keyword argument 'depht'"),
        ({"settings": {"img_size": 8}}, "multiple values for keyword argument 'img_size'"),
        ({"layer": 6}, "layer 6 is outside the 6 of 'test_vit': 0 to 5, or -1 to -6"),
        ({"model": "test_resnet", "keep_class": True}, "'test_resnet' has no class token"),
        ({"checkpoint": "/nowhere/weights.safetensors"}, "no file '/nowhere/weights.safetensors'"),
        ({"model": "pit_ti_224", "resolution": 64}, "gives 0 tokens, no square grid; choose a layer"),
        ({"model": "coat_tiny", "resolution": 64}, "'coat_tiny' does not run at 64 pixels"),
    ],
)
def test_what_cannot_be_built_is_named_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message) as caught:
        encoder(**{"model": "test_vit", **settings})
    assert "\n" not in str(caught.value)
