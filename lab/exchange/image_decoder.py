"""Image decoders in the format of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lab.errors import LabError

_AUTOENCODERS = {"vq": "VQModel", "vae": "AutoencoderKL"}  # word of both halves -> class of diffusers
CONDITIONING = "conditioning.safetensors"


def export_image_decoder(word: str, decoder: Any, encoder_word: str, encoder: Any, folder: Path) -> list[str]:
    """Write an image decoder for `from_pretrained` of its class in diffusers.

    `vq` and `vae` become a whole autoencoder with the arm's encoder. Of others, each model of diffusers in
    them gets a folder of its own.

    Args:
        word, decoder: the image decoder.
        encoder_word, encoder: the encoder whose tokens it decodes.
        folder: to write to.

    Returns:
        What the person should know of what was written, a line each.

    Raises:
        LabError: diffusers has no format for it.
    """
    if word not in _AUTOENCODERS:
        return _export_models(word, decoder, folder)
    kind = _AUTOENCODERS[word]
    if encoder_word != word:
        raise LabError(
            f"image_decoder {word}: {kind} of diffusers encodes too, but the arm's encoder is {encoder_word}"
        )
    if decoder.shortcut is not None or encoder.shortcut is not None:
        raise LabError(
            f"image_decoder {word}: {kind} of diffusers has no path around its blocks; train both halves "
            f"with shortcut: false"
        )
    model = (_vq_model if word == "vq" else _autoencoder_kl)(decoder, encoder)
    try:
        model.encoder.load_state_dict(encoder.encoder.state_dict())
    except RuntimeError as error:
        raise LabError(
            f"image_decoder {word}: {kind} of diffusers has one set of sizes, but the arm's encoder has "
            f"others than its image decoder"
        ) from error
    model.decoder.load_state_dict(decoder.decoder.state_dict())
    model.save_pretrained(folder)
    return []


def _vq_model(decoder: Any, encoder: Any) -> Any:
    from diffusers import VQModel

    if encoder.normalise:
        raise LabError(
            "image_decoder vq: VQModel of diffusers does not put its codes on a sphere (normalise)"
        )
    model = VQModel.from_config({**_sizes(decoder), "num_vq_embeddings": len(encoder.codes)})
    model.quant_conv.load_state_dict(encoder.project.state_dict())
    model.post_quant_conv.load_state_dict(decoder.project.state_dict())
    model.quantize.embedding.weight.data.copy_(encoder.codes)
    return model


def _autoencoder_kl(decoder: Any, encoder: Any) -> Any:
    """The autoencoder; its scaling factor makes our tokens of its latents.

    Our image decoder may take scaled latents as they are, diffusers' takes unscaled ones. What lies between,
    `gain * latents + offset`, goes into the convolution before the decoder.
    """
    from diffusers import AutoencoderKL

    scale = float(encoder.scale)
    gain = scale / decoder.scale
    offset = decoder.shift - encoder.shift * gain
    between = abs(gain - 1) > 1e-6 or offset != 0
    config = {**_sizes(decoder), "scaling_factor": scale, "shift_factor": encoder.shift or None}
    model = AutoencoderKL.from_config(config | ({"use_post_quant_conv": True} if between else {}))
    if model.quant_conv is not None:
        model.quant_conv.load_state_dict(encoder.project.state_dict())
    if between:
        width = model.config.latent_channels
        own = decoder.project.state_dict()
        weight = own.get("weight", torch.eye(width).view(width, width, 1, 1))
        own = {"weight": gain * weight, "bias": own.get("bias", 0) + offset * weight.sum(dim=(1, 2, 3))}
        model.post_quant_conv.load_state_dict(own)
    elif model.post_quant_conv is not None:
        model.post_quant_conv.load_state_dict(decoder.project.state_dict())
    return model


def _sizes(decoder: Any) -> dict[str, Any]:
    """The autoencoder's configuration, without what diffusers notes of where it came from."""
    return {name: value for name, value in decoder.config.items() if not name.startswith("_")}


def _export_models(word: str, decoder: Any, folder: Path) -> list[str]:
    from diffusers import ModelMixin

    models = {name: part for name, part in decoder.named_children() if isinstance(part, ModelMixin)}
    if not models:
        raise LabError(f"image_decoder {word}: is the lab's own, diffusers has no class for it")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    rest = {
        name: value.contiguous()
        for name, value in decoder.state_dict().items()
        if name.split(".")[0] not in models
    }
    save_file(rest, folder / CONDITIONING)
    return [
        f"what makes the inputs of {', '.join(models)} of visual tokens is the lab's own, in {CONDITIONING}"
    ]
