"""The parts of diffusers' text-to-image pipelines behind one set of calls, whatever the family.

Known families, by their denoisers: Stable Diffusion 1, 2 and XL (a U-Net), Stable Diffusion 3, PixArt and
Sana (transformers). Latents are those the denoiser works on, scaled; times count from 0, data, to the number
of training steps.
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.layers.pretrained import load, outline

__all__ = ["add_noise", "conditions", "decode", "denoise", "empty_condition", "encode", "load_parts"]

KIND = "text-to-image pipeline of diffusers"
_FAMILIES = (
    "UNet2DConditionModel",
    "SD3Transformer2DModel",
    "PixArtTransformer2DModel",
    "SanaTransformer2DModel",
)


def load_parts(path: str) -> tuple[Any, Any, Any]:
    """Load the denoiser, the autoencoder and the scheduler of a pipeline.

    Raises:
        ValueError: there is no such pipeline, weights are missing, or its family is not known here.
    """
    import diffusers

    if (unet := outline(diffusers.UNet2DConditionModel, path, KIND, "unet")) is not None:
        vae = outline(diffusers.AutoencoderKL, path, KIND, "vae")
        return unet, vae, outline(diffusers.PNDMScheduler, path, KIND, "scheduler")
    index = _index(path)
    name = "unet" if "unet" in index else "transformer"
    kind = index.get(name, ["", "none"])[1]
    if kind not in _FAMILIES:
        raise ValueError(
            f"'{path}' denoises with {kind}; the families known are those of {', '.join(_FAMILIES)}"
        )
    models = [
        load(
            getattr(diffusers, index[part][1]),
            path,
            KIND,
            subfolder=part,
            torch_dtype=torch.float32,
            output_loading_info=True,
        ).train()  # like new ones; diffusers gives them in eval mode
        for part in (name, "vae")
    ]
    return *models, load(getattr(diffusers, index["scheduler"][1]), path, KIND, subfolder="scheduler")


def empty_condition(path: str, denoiser: Any, vae: Any) -> tuple[Tensor, Tensor | None]:
    """What the pipeline's text encoders make of no text: (1, L, F), and pooled (1, P) where there is such.

    Args:
        path: of the pipeline.
        denoiser: of the pipeline.
        vae: of the pipeline.

    Raises:
        ValueError: it has no text encoder.
    """
    import diffusers

    if outline(diffusers.UNet2DConditionModel, path, KIND, "unet") is not None:
        return torch.zeros(1, 77, conditions(denoiser)[0]), None
    index = _index(path)
    if index.get("text_encoder", [None])[0] is None:
        raise ValueError(f"'{path}' has no text encoder to say what no text is: set guidance to 1, drop to 0")
    loaded = {"unet": denoiser, "transformer": denoiser, "vae": vae, "safety_checker": None}
    loaded = {name: part for name, part in loaded.items() if name in index}
    pipeline = load(diffusers.DiffusionPipeline, path, KIND, torch_dtype=torch.float32, **loaded)
    given = {"prompt": "", "prompt_2": "", "prompt_3": "", "device": "cpu", "num_images_per_prompt": 1}
    accepted = signature(pipeline.encode_prompt).parameters
    given = {name: value for name, value in given.items() if name in accepted}
    with torch.no_grad():  # a constant of the pipeline
        said = pipeline.encode_prompt(**given, do_classifier_free_guidance=True)
    if "prompt_attention_mask" in accepted:  # PixArt and Sana pad with what must not be seen
        return said[2][:, said[3][0].bool()], None
    return said[1], said[3] if len(said) == 4 else None


def conditions(denoiser: Any) -> tuple[int, int]:
    """Width F of the text condition, and P of the pooled one, 0 for none."""
    config = denoiser.config
    match type(denoiser).__name__:
        case "UNet2DConditionModel":
            pooled = 0
            if config.addition_embed_type == "text_time":  # XL's, beside six numbers on the image's size
                pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            return config.cross_attention_dim, pooled
        case "SD3Transformer2DModel":
            return config.joint_attention_dim, config.pooled_projection_dim
        case _:
            return config.caption_channels, 0


def denoise(
    denoiser: Any, noisy: Tensor, time: Tensor, condition: Tensor, pooled: Tensor | None, size: int
) -> Tensor:
    """Predict what the scheduler expects from noisy latents.

    Args:
        denoiser: the pipeline's U-Net or transformer.
        noisy: (B, C, h, w).
        time: (B,).
        condition: (B, L, F).
        pooled: (B, P), where the family has it.
        size: side of the image in pixels, which some families are told.
    """
    rows = len(noisy)
    settings: dict[str, Any] = {"encoder_hidden_states": condition, "timestep": time}
    match type(denoiser).__name__:
        case "UNet2DConditionModel":
            if pooled is not None:
                sizes = noisy.new_tensor([size, size, 0, 0, size, size]).expand(
                    rows, -1
                )  # as if never cropped
                settings["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        case "SD3Transformer2DModel":
            settings["pooled_projections"] = pooled
        case "PixArtTransformer2DModel":
            tell = denoiser.use_additional_conditions
            settings["added_cond_kwargs"] = {
                "resolution": noisy.new_full((rows, 2), size) if tell else None,
                "aspect_ratio": noisy.new_ones(rows, 1) if tell else None,
            }
        case "SanaTransformer2DModel":
            settings["timestep"] = time * denoiser.config.timestep_scale
    return denoiser(noisy, **settings).sample[:, : noisy.shape[1]]  # some predict a variance too


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Draw the latents (B, C, h, w) of pixels (B, 3, H, W) in [-1, 1]."""
    encoded = vae.encode(pixels)
    latents = encoded.latent_dist.sample() if hasattr(encoded, "latent_dist") else encoded.latent
    return (latents - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Map latents (B, C, h, w) to pixels (B, 3, H, W), in [-1, 1] or a little beyond."""
    return vae.decode(latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)).sample


def add_noise(scheduler: Any, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw times and noise as the pipeline was trained.

    Returns:
        noisy latents (B, C, h, w), times (B,), and what the denoiser should give for them.
    """
    from diffusers import DDPMScheduler

    config, noise = scheduler.config, torch.randn_like(latents)
    kind = config.get("prediction_type", "flow_prediction")  # schedulers of flows alone do not say
    if kind == "flow_prediction":
        shift = config.get("shift") or config.get("flow_shift") or 1.0
        share = torch.randn_like(latents[:, :1, :1, :1]).sigmoid()  # (B, 1, 1, 1), as in Stable Diffusion 3
        share = shift * share / (1 + (shift - 1) * share)
        time = share.flatten() * config.num_train_timesteps
        return (1 - share) * latents + share * noise, time, noise - latents
    # schedulers made for sampling may add noise on a scale of their own
    process = DDPMScheduler.from_config(config)
    time = torch.randint(config.num_train_timesteps, latents.shape[:1], device=latents.device)
    match kind:
        case "epsilon":
            wanted = noise
        case "v_prediction":
            wanted = process.get_velocity(latents, noise, time)
        case _:
            wanted = latents
    return process.add_noise(latents, noise, time), time, wanted


def _index(path: str) -> dict[str, Any]:
    """Say which class each part of a pipeline has."""
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.load_config(str(Path(path).expanduser()))
    except Exception as error:  # OSError, and errors of huggingface_hub
        raise ValueError(
            f"cannot load a {KIND} from '{path}': expected a local folder with model_index.json, as "
            f"save_pretrained of diffusers writes it, or a name on the Hugging Face hub, cached or reachable"
        ) from error
