"""The two halves of a VQModel: equal to diffusers', honest codes, and an adversarial game in one backward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.errors import LabError
from lab.registry import build

Settings = dict[str, Any]
PLAIN: Settings = {"num_codes": 12, "dim": 4, "shortcut": False, "ema": None}


def encoder(**settings: Any) -> Any:
    return build("encoder", {"name": "vq", **settings}, 32)


def decoder(**settings: Any) -> Any:
    return build("image_decoder", {"name": "vq", **settings}, 16, 64, 32)


@pytest.fixture(params=["group", "spatial"])
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A VQModel of diffusers on disk; "spatial" norms are those of MoVQ."""
    from diffusers import VQModel

    model = VQModel(
        block_out_channels=(32, 32),  # SpatialNorm has groups of a 32nd of the width
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=5 if request.param == "spatial" else 6,
        vq_embed_dim=5,
        num_vq_embeddings=12,
        norm_num_groups=4,
        norm_type=request.param,
    ).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    return model


@torch.no_grad()
def test_both_halves_equal_the_model_of_diffusers(reference: Any, tmp_path: Path) -> None:
    one = encoder(path=str(tmp_path)).eval()
    other = build("image_decoder", {"name": "vq", "path": str(tmp_path)}, 5, 256, 32).eval()
    pixels = torch.rand(2, 3, 32, 32)
    latents = reference.encode(pixels * 2 - 1).latents
    codes = reference.quantize(latents)[0].flatten(2).transpose(1, 2)
    tokens = one(pixels)
    torch.testing.assert_close(tokens, codes, atol=1e-5, rtol=0)
    assert len(tokens.flatten(0, 1).unique(dim=0)) > 2
    drawn = reference.decode(latents).sample
    torch.testing.assert_close(other(tokens), drawn, atol=1e-5, rtol=1e-5)
    assert torch.equal(other.sample(tokens), (other(tokens).clamp(-1, 1) + 1) / 2)


@pytest.mark.parametrize("legacy", [False, True])
def test_loss_is_that_of_diffusers_with_beta_on_either_term(legacy: bool) -> None:
    from diffusers.models.autoencoders.vae import VectorQuantizer

    part = encoder(**PLAIN, legacy=legacy, restart=0)
    theirs = VectorQuantizer(12, 4, beta=0.25, legacy=legacy)
    theirs.embedding.weight.data.copy_(part.codes)
    pixels = torch.rand(3, 3, 32, 32)
    loss = part.autoencode(pixels)[1]
    expected = theirs(part.project(part.encoder(pixels * 2 - 1)))[1]
    torch.testing.assert_close(loss.mean(), expected)
    loss.mean().backward(), expected.backward()
    torch.testing.assert_close(part.codes.grad, theirs.embedding.weight.grad)


@pytest.mark.parametrize("normalise", [False, True])
def test_tokens_are_rows_of_the_codebook_to_the_last_bit(normalise: bool) -> None:
    part = encoder(normalise=normalise)
    tokens, _ = part.autoencode(torch.rand(4, 3, 32, 32))
    part.eval()
    tokens = part(torch.rand(4, 3, 32, 32))
    rows = (tokens.flatten(0, 1)[:, None] == part.codebook).all(dim=2).any(dim=1)
    assert rows.all()
    if normalise:
        torch.testing.assert_close(tokens.norm(dim=2), torch.ones(4, 64))


def test_gradient_of_a_token_passes_straight_to_its_feature() -> None:
    part = encoder(**PLAIN)
    pixels = torch.rand(2, 3, 32, 32)
    weight = torch.randn(2, 64, 4)
    (part(pixels) * weight).sum().backward()
    assert part.codes.grad is None
    straight = [p.grad.clone() for p in part.encoder.parameters()]
    part.zero_grad()
    (part._features(pixels) * weight).sum().backward()
    for one, other in zip(straight, part.encoder.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)


def test_codes_follow_the_running_mean_of_their_features() -> None:
    part = encoder(num_codes=8, dim=4, ema=0.5)
    pixels = torch.rand(4, 3, 32, 32)
    part.autoencode(pixels)  # codes begin
    features = part._features(pixels).detach().flatten(0, 1)
    before, counts = part.codes.clone(), part.counts.clone()
    index = part._nearest(features[None])[0]
    part.restart = 0
    part.autoencode(pixels)
    for code in index.unique():
        mine = features[index == code]
        total = 0.5 * counts[code] + 0.5 * len(mine)
        expected = (0.5 * counts[code] * before[code] + 0.5 * mine.sum(dim=0)) / total
        torch.testing.assert_close(part.codes[code], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_codes_out_of_use_begin_again_from_the_batch(ema: float | None) -> None:
    def used(part: Any, pixels: Tensor) -> float:
        return len(part._nearest(part._features(pixels)).unique()) / len(part.codes)

    pixels = torch.rand(8, 3, 32, 32)
    after = []
    for _ in range(2):
        torch.manual_seed(3)
        part = encoder(num_codes=64, dim=4, ema=ema, restart=3)
        part.unused.zero_()
        part.codes.data[1:] += 100  # far from everything
        for _ in range(3):
            part.autoencode(pixels)
            assert used(part, pixels) < 0.05
        part.autoencode(pixels)
        after.append(part.codes.detach().clone())
    assert used(part, pixels) > 0.2  # SEED's check
    assert torch.equal(*after)
    part.eval().unused.fill_(9)
    part.autoencode(pixels)
    assert torch.equal(part.codes, after[1])
    assert (part.unused == 9).all()


def test_all_codes_begin_in_the_first_batch() -> None:
    part = encoder(num_codes=32)
    part.autoencode(torch.rand(4, 3, 32, 32))
    assert (part.unused <= 1).all()
    assert torch.cdist(part._features(torch.rand(4, 3, 32, 32)).flatten(0, 1), part.codes).amin(1).max() < 3


def scenes(count: int) -> Tensor:
    """Coloured squares on black."""
    pixels = torch.zeros(count, 3, 32, 32)
    for image in pixels:
        row, column = torch.randint(24, (2,)).tolist()
        image[:, row : row + 8, column : column + 8] = torch.rand(3, 1, 1)
    return pixels


def test_halves_learn_an_image_together_and_keep_their_codes_in_use() -> None:
    one, other = encoder(num_codes=64), decoder()
    optimiser = torch.optim.AdamW([*one.parameters(), *other.parameters()], 1e-3)
    pixels = scenes(8)
    for _ in range(60):
        tokens, loss = one.autoencode(pixels)
        optimiser.zero_grad()
        (other.loss(tokens, pixels) + loss).mean().backward()
        optimiser.step()
    one.eval(), other.eval()
    with torch.no_grad():
        drawn = other.sample(one(pixels))
        used = len(one._nearest(one._features(pixels)).unique()) / 64
    assert -10 * (drawn - pixels).square().mean().log10() > 25  # dB; black images have about 17
    assert used > 0.2


def test_adversarial_game_has_the_gradients_of_both_players() -> None:
    part = decoder(adversarial=0.7, adversarial_start=1, discriminator_channels=8, discriminator_layers=2)
    tokens, pixels = torch.randn(2, 64, 16), torch.rand(2, 3, 32, 32)
    part.loss(tokens, pixels).mean().backward()
    discriminator = part.compare.discriminator
    assert all(p.grad is None for p in discriminator.parameters())  # it starts at step 1
    part.zero_grad()
    part.loss(tokens, pixels).mean().backward()
    got = {name: p.grad.clone() for name, p in part.named_parameters()}

    part.zero_grad()
    drawn, real = part(tokens), pixels * 2 - 1
    ((drawn - real).abs().mean() - 0.7 * discriminator(drawn).mean()).backward()
    generator = {name: p.grad.clone() for name, p in part.named_parameters() if "discriminator" not in name}
    part.zero_grad()
    real_score, fake_score = discriminator(real), discriminator(drawn.detach())
    ((1 - real_score).relu().mean() / 2 + (1 + fake_score).relu().mean() / 2).backward()
    judge = {name: p.grad for name, p in part.named_parameters() if "discriminator" in name}
    for name, expected in (generator | judge).items():
        torch.testing.assert_close(got[name], expected, msg=lambda text, name=name: f"{name}: {text}")
    assert got.keys() == generator.keys() | judge.keys()

    part.eval()
    plain = (part(tokens) - real).abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(part.loss(tokens, pixels), plain)
    assert part.compare.step == 2


def test_adversarial_row_depends_on_that_row_only() -> None:
    part = decoder(adversarial=0.5, discriminator_channels=8, discriminator_layers=2)
    tokens, pixels = torch.randn(3, 64, 16), torch.rand(3, 3, 32, 32)
    before = part.loss(tokens, pixels)
    tokens[1] += 1
    after = part.loss(tokens, pixels)
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights of torchvision, out of reach of the network."""
    from urllib.error import URLError

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_missing_weights_of_lpips_are_named(hub: Path) -> None:
    with pytest.raises(
        LabError, match=r"perceptual: cannot load torchvision's weights of vgg.*checkpoints"
    ) as info:
        decoder(perceptual=1.0)
    assert "\n" not in str(info.value)


def test_perceptual_term_is_lpips_and_no_part_of_the_model(hub: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1().state_dict(), hub / "squeezenet1_1-b8a52dc0.pth")
    part = decoder(perceptual=2.0, backbone="squeeze")
    tokens, pixels = torch.randn(2, 64, 16), torch.rand(2, 3, 32, 32)
    drawn, real = part(tokens), pixels * 2 - 1
    expected = (drawn - real).abs().mean(dim=(1, 2, 3)) + 2 * part.compare._lpips[0](drawn, real).flatten()
    torch.testing.assert_close(part.loss(tokens, pixels), expected)
    assert part.state_dict().keys() == decoder().state_dict().keys()
    same = (part(tokens).detach() + 1) / 2
    assert part.loss(tokens, same).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"legacy": True}, "set ema to null"),
        ({"downsample": 3}, "not divided by 3"),
        ({"downsample": 64}, "image_size 32 is not a multiple of downsample 64"),
        ({"channels": 6}, "channels 6 is not a multiple of 4"),
        ({"multipliers": [1, 2]}, "3 are needed to halve the side 2 times"),
        ({"path": "/nowhere/at/all"}, "no folder '/nowhere/at/all'"),
    ],
)
def test_impossible_encoders_are_refused(settings: Settings, message: str) -> None:
    with pytest.raises(LabError, match=message):
        encoder(**settings)


def test_checkpoints_that_do_not_fit_are_refused(
    reference: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(LabError, match="decodes tokens of width 5, 2 pixels a side, not of width 16"):
        decoder(path=str(tmp_path))
    with pytest.raises(LabError, match="no folder"):  # diffusers would read the folder above
        encoder(path=str(tmp_path), subfolder="vqvae")
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "codebook" not in name}, file)
    weights = load_file(file)
    del weights["quantize.embedding.weight"]
    save_file(weights, file)
    with pytest.raises(LabError, match=r"lacks weights of a VQModel of diffusers: quantize.embedding.weight"):
        encoder(path=str(tmp_path))


def test_published_sizes_can_be_expressed() -> None:
    with torch.device("meta"):
        part: Callable[..., Any] = build(
            "encoder",
            {
                "name": "vq",
                "downsample": 16,
                "channels": 128,
                "multipliers": [1, 1, 2, 2, 4],
                "layers": 2,
                "attention": "coarsest",
                "num_codes": 1024,
                "dim": 256,
                "shortcut": False,
            },
            256,
        )
    assert part.num_tokens == 256
    assert part.encoder.conv_norm_out.num_groups == 32
