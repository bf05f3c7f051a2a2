"""Pipelines of diffusers as image decoders: the same images and losses, a gradient through what is frozen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.errors import LabError
from lab.registry import build

Build = Callable[..., Any]
SMALL = {"num_queries": 5, "dim": 32, "depth": 1, "steps": 3}


def decoder(path: Path, dim_in: int = 24, size: int = 16, **settings: Any) -> Any:
    spec = {"name": "stable_diffusion", "path": str(path), **SMALL, **settings}
    return build("image_decoder", spec, dim_in, 16, size).eval()


def pipeline(path: Path) -> Any:
    from diffusers import DiffusionPipeline

    loaded = DiffusionPipeline.from_pretrained(path)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipe: Any, seed: int = 1, **settings: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return pipe(generator=generator, num_inference_steps=3, output_type="pt", **settings).images


@pytest.fixture
def folder(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("stable_diffusion")


@pytest.mark.parametrize("scheduler", ["DDIM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_samples_are_the_pipelines(scheduler: str, guidance: float, folder: Path, tmp_path: Path) -> None:
    import diffusers

    pipe = pipeline(folder)
    config = {**pipe.scheduler.config, "skip_prk_steps": True}  # the last for PNDM, as in the published ones
    pipe.scheduler = getattr(diffusers, f"{scheduler}Scheduler").from_config(config)
    pipe.save_pretrained(tmp_path)
    part = decoder(tmp_path, guidance=guidance, num_queries=7)
    tokens = torch.randn(2, 16, 24)
    with torch.no_grad():
        condition, _ = part._condition(tokens)
        expected = draw(
            pipe,
            prompt_embeds=condition,
            negative_prompt_embeds=pipe.encode_prompt("", "cpu", 1, False)[0].expand(2, -1, -1),
            guidance_scale=guidance,
        )
        drawn, again = (part.sample(tokens, torch.Generator().manual_seed(1)) for _ in range(2))
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    assert torch.equal(drawn, again)


@torch.no_grad()
def test_true_text_conditions_draw_what_the_text_does(folder: Path) -> None:
    pipe = pipeline(folder)
    part = decoder(folder, dim_in=32, mapper="none", guidance=4.0)
    text = pipe.encode_prompt("a b", "cpu", 1, False)[0]
    drawn = part.sample(text, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn, draw(pipe, prompt="a b", guidance_scale=4.0), atol=1e-5, rtol=0)


def family(kind: str) -> tuple[Any, dict[str, Any]]:
    """A tiny pipeline without text encoders, and what to call it with besides conditions."""
    import diffusers

    torch.manual_seed(5)
    halves = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    kl = {"block_out_channels": [8, 16], "norm_num_groups": 4, **halves}
    match kind:
        case "StableDiffusionXLPipeline":
            unet = diffusers.UNet2DConditionModel(
                sample_size=8,
                block_out_channels=[16, 32],
                layers_per_block=1,
                down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
                up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
                cross_attention_dim=24,
                attention_head_dim=2,
                norm_num_groups=4,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 20,
            )
            scheduler = diffusers.EulerDiscreteScheduler()
            encoders = dict.fromkeys(["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
            return diffusers.StableDiffusionXLPipeline(
                vae=diffusers.AutoencoderKL(**kl), unet=unet, scheduler=scheduler, **encoders
            ), {"pooled": 20}
        case "StableDiffusion3Pipeline":
            transformer = diffusers.SD3Transformer2DModel(
                sample_size=8,
                patch_size=1,
                in_channels=4,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                caption_projection_dim=16,
                joint_attention_dim=24,
                pooled_projection_dim=20,
                out_channels=4,
            )
            vae = diffusers.AutoencoderKL(
                **kl, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False
            )
            encoders = dict.fromkeys(
                f"{name}{suffix}" for name in ("text_encoder", "tokenizer") for suffix in ("", "_2", "_3")
            )
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
            return diffusers.StableDiffusion3Pipeline(
                transformer=transformer, vae=vae, scheduler=scheduler, **encoders
            ), {"pooled": 20}
        case "PixArtAlphaPipeline":
            transformer = diffusers.PixArtTransformer2DModel(
                sample_size=8,
                num_layers=1,
                patch_size=2,
                attention_head_dim=8,
                num_attention_heads=2,
                caption_channels=24,
                in_channels=4,
                cross_attention_dim=16,
                out_channels=8,
                use_additional_conditions=False,
            )
            return diffusers.PixArtAlphaPipeline(
                tokenizer=None,
                text_encoder=None,
                vae=diffusers.AutoencoderKL(**kl),
                transformer=transformer,
                scheduler=diffusers.DDIMScheduler(),
            ), {"masked": True}
        case "SanaPipeline":
            transformer = diffusers.SanaTransformer2DModel(
                patch_size=1,
                in_channels=4,
                out_channels=4,
                num_layers=1,
                num_attention_heads=2,
                attention_head_dim=8,
                num_cross_attention_heads=2,
                cross_attention_head_dim=8,
                cross_attention_dim=16,
                caption_channels=24,
                sample_size=16,  # the pipeline wants images of a multiple of 32 px
                timestep_scale=0.5,
            )
            vae = diffusers.AutoencoderDC(
                latent_channels=4,
                attention_head_dim=2,
                encoder_block_types=["ResBlock", "EfficientViTBlock"],
                decoder_block_types=["ResBlock", "EfficientViTBlock"],
                encoder_block_out_channels=[8, 8],
                decoder_block_out_channels=[8, 8],
                encoder_qkv_multiscales=[[], [5]],
                decoder_qkv_multiscales=[[], [5]],
                encoder_layers_per_block=[1, 1],
                decoder_layers_per_block=[1, 1],
                downsample_block_type="conv",
                upsample_block_type="interpolate",
                decoder_norm_types="rms_norm",
                decoder_act_fns="silu",
                scaling_factor=0.41407,
            )
            scheduler = diffusers.DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            )
            return diffusers.SanaPipeline(
                tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
            ), {"masked": True}
    raise AssertionError(kind)


FAMILIES = ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "PixArtAlphaPipeline", "SanaPipeline"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_other_families_draw_and_learn(kind: str, tmp_path: Path) -> None:
    pipe, facts = family(kind)
    pipe.save_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    part = decoder(tmp_path, guidance=1.0, size=32 if kind == "SanaPipeline" else 16)
    tokens = torch.randn(2, 16, 24)
    with torch.no_grad():
        condition, pooled = part._condition(tokens)
        given = {"prompt_embeds": condition, "guidance_scale": 1.0}
        if "pooled" in facts:
            given["pooled_prompt_embeds"] = pooled
            assert pooled.shape == (2, facts["pooled"])
        if "masked" in facts:
            given |= {"prompt_attention_mask": torch.ones(2, 5), "use_resolution_binning": False}
            given["negative_prompt"] = None if kind == "PixArtAlphaPipeline" else ""
        expected = draw(pipe, height=part.resolution, width=part.resolution, **given)
    drawn = part.sample(tokens, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    part.train().loss(tokens, torch.rand(2, 3, *drawn.shape[2:])).sum().backward()
    lacking = [name for name, p in part.named_parameters() if p.grad is None and not name.startswith("vae.")]
    assert not lacking


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_is_the_pipelines_own(prediction: str, folder: Path, tmp_path: Path) -> None:
    from diffusers import DDPMScheduler

    pipe = pipeline(folder)
    pipe.scheduler.register_to_config(prediction_type=prediction)
    pipe.save_pretrained(tmp_path)
    part = decoder(tmp_path)
    tokens, pixels = torch.randn(3, 16, 24), torch.rand(3, 3, 16, 16)
    torch.manual_seed(8)
    loss = part.loss(tokens, pixels)

    torch.manual_seed(8)
    latents = pipe.vae.encode(pixels * 2 - 1).latent_dist.sample() * pipe.vae.config.scaling_factor
    noise, time = torch.randn_like(latents), torch.randint(1000, (3,))
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    wanted = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, time)
    noisy = scheduler.add_noise(latents, noise, time)
    predicted = pipe.unet(noisy, time, encoder_hidden_states=part._condition(tokens)[0]).sample
    torch.testing.assert_close(loss, (predicted - wanted).square().mean(dim=(1, 2, 3)), atol=1e-5, rtol=1e-5)


def test_flow_is_charged_for_the_velocity_of_a_straight_line(tmp_path: Path) -> None:
    family("StableDiffusion3Pipeline")[0].save_pretrained(tmp_path)
    part = decoder(tmp_path, guidance=1.0)
    tokens, pixels = torch.randn(4, 16, 24), torch.rand(4, 3, 16, 16)
    torch.manual_seed(8)
    loss = part.loss(tokens, pixels)
    torch.manual_seed(8)
    config = part.vae.config
    latents = part.vae.encode(pixels * 2 - 1).latent_dist.sample()
    latents = (latents - config.shift_factor) * config.scaling_factor
    noise = torch.randn_like(latents)
    share = torch.randn(4, 1, 1, 1).sigmoid()
    share = 3 * share / (1 + 2 * share)  # shifted towards noise, as the scheduler says
    condition, pooled = part._condition(tokens)
    predicted = part.denoiser(
        (1 - share) * latents + share * noise,
        timestep=1000 * share.flatten(),
        encoder_hidden_states=condition,
        pooled_projections=pooled,
    ).sample
    torch.testing.assert_close(loss, (predicted - noise + latents).square().mean(dim=(1, 2, 3)))


def test_loss_reaches_the_tokens_through_a_frozen_pipeline(folder: Path) -> None:
    part = decoder(folder).train()
    part.denoiser.requires_grad_(False)
    part.vae.requires_grad_(False)
    tokens = torch.randn(2, 16, 24, requires_grad=True)
    part.loss(tokens, torch.rand(2, 3, 16, 16)).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.flatten(1).any(dim=1).all()
    assert all(p.grad is not None and p.grad.any() for p in part.mapper.parameters())
    assert all(p.grad is None for p in [*part.denoiser.parameters(), *part.vae.parameters()])


def test_the_vae_is_never_trained(folder: Path) -> None:
    part = decoder(folder).train()
    part.loss(torch.randn(2, 16, 24), torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(p.requires_grad and p.grad is None for p in part.vae.parameters())
    assert all(p.grad is not None for p in part.denoiser.parameters())


def test_dropped_conditions_are_those_of_no_text(folder: Path) -> None:
    part = decoder(folder, drop=1.0).train()
    pixels = torch.rand(4, 3, 16, 16)

    def loss(tokens: Tensor) -> Tensor:
        torch.manual_seed(3)
        return part.loss(tokens, pixels)

    one, other = torch.randn(4, 16, 24), torch.randn(4, 16, 24)
    assert torch.equal(loss(one), loss(other))
    none = part._nothing(4)
    part._condition = lambda tokens: none
    part.eval()
    torch.testing.assert_close(loss(one), part.train() and loss(one))
    some = decoder(folder, drop=0.5)
    kept = []
    for _ in range(20):
        torch.manual_seed(len(kept))
        before = some.train().loss(one, pixels)
        torch.manual_seed(len(kept))
        kept += (before == some.loss(other, pixels)).tolist()
    assert 0.3 < sum(kept) / len(kept) < 0.7


@pytest.mark.parametrize(("mapper", "length"), [("transformer", 5), ("mlp", 16), ("linear", 16)])
def test_mappers_give_conditions_of_the_pipelines_width(mapper: str, length: int, folder: Path) -> None:
    part = decoder(folder, mapper=mapper)
    assert part._condition(torch.randn(2, 16, 24))[0].shape == (2, length, 32)


def test_images_are_resized_to_the_pipelines_own_size(folder: Path) -> None:
    tokens = torch.randn(1, 16, 24)
    assert decoder(folder, size=40).sample(tokens).shape == (1, 3, 40, 40)
    large = decoder(folder, size=40, resolution=24)
    assert large.latent_size == 12
    assert large.sample(tokens).shape == (1, 3, 40, 40)
    assert large.loss(tokens, torch.rand(1, 3, 40, 40)).isfinite().all()


def test_text_encoders_are_not_kept(folder: Path) -> None:
    part = decoder(folder)
    assert {name.split(".")[0] for name in part.state_dict()} == {"denoiser", "vae", "mapper", "empty"}
    assert part.empty.shape == (1, 7, 32)
    assert not hasattr(decoder(folder, guidance=1.0), "empty")


def test_denoiser_and_mapper_learn_two_images(folder: Path) -> None:
    part = decoder(folder).train()
    tokens = torch.randn(2, 16, 24).repeat(8, 1, 1)
    pixels = torch.rand(2, 3, 1, 1).repeat(8, 1, 16, 16)
    optimiser = torch.optim.AdamW([*part.mapper.parameters(), *part.denoiser.parameters()], 3e-3)
    losses = []
    for _ in range(40):
        loss = part.loss(tokens, pixels).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mapper": "none"}, "tokens of width 24 are no text conditions, of width 32"),
        ({"resolution": 15}, "resolution 15 is not a multiple of 2"),
        ({"dim": 30}, "dim 30 is not a multiple of num_heads 4"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(LabError, match=message):
        decoder(folder, **settings)


def test_folders_that_are_no_known_pipeline_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(LabError, match=r"expected a local folder with model_index\.json"):
        decoder(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if name != "conv_in.weight"}, file)
    with pytest.raises(
        LabError, match=r"lacks weights of a text-to-image pipeline of diffusers: conv_in.weight"
    ):
        decoder(broken)
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "UNet2DModel"]}))
    with pytest.raises(LabError, match="denoises with UNet2DModel; the families known"):
        decoder(broken)


def test_guidance_needs_a_text_encoder(tmp_path: Path) -> None:
    family("PixArtAlphaPipeline")[0].save_pretrained(tmp_path)
    with pytest.raises(LabError, match="has no text encoder to say what no text is"):
        decoder(tmp_path, guidance=2.0)


def test_stable_diffusion_1_has_its_published_size_without_weights() -> None:
    from components.layers.pretrained import architectures

    facts = Path(__file__).parents[2] / "experiments" / "checkpoints"
    spec = {"name": "stable_diffusion", "path": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
    with architectures(facts), torch.device("meta"):
        part = build("image_decoder", spec, 1024, 64, 512)
    count = sum(p.numel() for p in nn.ModuleList([part.denoiser, part.vae]).parameters())
    assert 940e6 < count < 945e6
    assert part.resolution == 512
