"""BLIP-2 in the format of transformers, `Blip2ForConditionalGeneration`, read as parts of the lab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from lab.errors import LabError
from lab.exchange.parts import Taken, filled, image_settings, load, text_decoder
from lab.samples.tokenizer import Tokenizer

_EVA = "eva_giant_patch14_clip_224"  # of timm: the encoder's form; settings say the sizes
_PIXELS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def read_blip2(source: Path, tokenizer: Tokenizer, added: dict[int, int | None]) -> Taken:
    """Take the parts of a checkpoint of `Blip2ForConditionalGeneration`.

    The encoder's final norm is the Q-Former's norm on the image, as in the authors' code.

    Args:
        source: its folder.
        tokenizer, added: as `own_tokenizer` gives them.

    Raises:
        LabError: there is something in it that the lab has no word for.
    """
    blip = load("Blip2ForConditionalGeneration", source)
    config, vision, former = blip.config, blip.config.vision_config, blip.config.qformer_config
    if not config.use_decoder_only_language_model:
        raise LabError(f"{source}: its language model is a {config.text_config.model_type} with an encoder")
    for what, value, only in (
        ("activation of the encoder", vision.hidden_act, "gelu"),
        ("layer_norm_eps of the encoder", vision.layer_norm_eps, 1e-6),
        ("activation of the Q-Former", former.hidden_act, "gelu"),
        ("layer_norm_eps of the Q-Former", former.layer_norm_eps, 1e-12),
        *((name, image_settings(source).get(name, only), only) for name, only in _PIXELS.items()),
    ):
        if value != only:
            raise LabError(f"{source}: {what} is {value}; the lab has {only}")
    spec = {
        "name": "timm",
        "model": _EVA,
        "layer": -1,
        "keep_class": True,
        "settings": {
            "patch_size": vision.patch_size,
            "embed_dim": vision.hidden_size,
            "depth": vision.num_hidden_layers,
            "num_heads": vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "qkv_bias": vision.qkv_bias,
        },
    }
    encoder_args = (vision.image_size,)
    encoder = filled("encoder", spec, encoder_args, dict(_encoder(blip.vision_model.state_dict())))
    text_spec, decoder = text_decoder(config.text_config, blip.language_model.state_dict(), tokenizer, added)
    connector_spec = {
        "name": "q_former",
        "num_queries": config.num_query_tokens,
        "dim": former.hidden_size,
        "depth": former.num_hidden_layers,
        "num_heads": former.num_attention_heads,
        "mlp_ratio": former.intermediate_size / former.hidden_size,
        "cross_attention_frequency": former.cross_attention_frequency,
        "positions": False,
    }
    connector_args = (encoder.dim, decoder.dim, encoder.num_tokens)
    connector = filled("connector", connector_spec, connector_args, dict(_q_former(blip)))
    return {
        "encoder": (spec, encoder_args, encoder),
        "connector": (connector_spec, connector_args, connector),
        "text_decoder": (text_spec, (len(tokenizer),), decoder),
    }


_ENCODER = {  # beginnings of names
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "encoder.layers.": "blocks.",
}
_BLOCK = {
    ".self_attn.qkv.": ".attn.qkv.",
    ".self_attn.projection.": ".attn.proj.",
    ".layer_norm1.": ".norm1.",
    ".layer_norm2.": ".norm2.",
}
_FORMER = {
    ".attention.attention.": ".attend.",
    ".attention.output.dense.": ".attend.out.",
    ".attention.output.LayerNorm.": ".norm_attend.",
    ".crossattention.attention.": ".cross.",
    ".crossattention.output.dense.": ".cross.out.",
    ".crossattention.output.LayerNorm.": ".norm_cross.",
    ".intermediate_query.dense.": ".mlp.0.",
    ".output_query.dense.": ".mlp.2.",
    ".output_query.LayerNorm.": ".norm_mlp.",
}


def _encoder(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights.items():
        if name.startswith("post_layernorm."):
            continue
        name = f"model.{_replaced(name, _ENCODER | _BLOCK)}"
        if name.endswith(".qkv.bias"):  # a bias of the keys is lost in the softmax
            query, _, value = value.chunk(3)
            yield name.replace("qkv.bias", "q_bias"), query
            name = name.replace("qkv.bias", "v_bias")
        yield name, value


def _q_former(blip: Any) -> Iterator[tuple[str, Tensor]]:
    yield "queries", blip.query_tokens.detach()
    for name, layer in (
        ("norm_image", blip.vision_model.post_layernorm),
        ("norm_queries", blip.qformer.layernorm),
        ("project", blip.language_projection),
    ):
        yield from ((f"{name}.{key}", value) for key, value in layer.state_dict().items())
    for name, value in blip.qformer.encoder.state_dict().items():
        yield _replaced(name, {"layer.": "blocks.", **_FORMER}), value


def _replaced(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name
