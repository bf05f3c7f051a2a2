"""LLaVA in the format of transformers: arms written to it, checkpoints read from it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.errors import LabError
from lab.exchange.parts import (
    Taken,
    filled,
    image_settings,
    load,
    names_of_vocabulary,
    outline,
    settings_of,
    text_decoder,
)
from lab.models.arm import Arm
from lab.registry import describe
from lab.samples.chat import OWN_TEMPLATE
from lab.samples.segments import BOS, EOS, IMAGE_END, IMAGE_START, PAD
from lab.samples.tokenizer import Tokenizer

IMAGE = "<image>"  # what LLaVA's processor repeats for every visual token

# What LLaVA can say: role -> word -> settings that may differ from their defaults; every other one may not.
_TOWER = {"path", "config", "layer", "keep_class", "resolution"}
_EXPRESSIBLE: dict[str, dict[str, set[str]]] = {
    "encoder": {"clip": _TOWER, "siglip": _TOWER, "dinov2": _TOWER},
    "connector": {"linear": set(), "mlp": set()},
    "fusion": {"sequence": set()},
}
_DECODERS = ("llama", "hf")

# -- export --------------------------------------------------------------------------------------------------


def export_llava(arm: Arm, folder: Path) -> list[str]:
    """Write an arm for `LlavaForConditionalGeneration.from_pretrained` and `AutoProcessor.from_pretrained`.

    The exported model's logits are the arm's, for the same ids with `<image>` at every visual token, and one
    more: that of `<image>` where the vocabulary had no place for it. LoRA is added to the weights it adapts.

    Args:
        arm: a vision tower of transformers, a linear or two-layer connector, and a language model of
            transformers that reads visual tokens in its sequence.
        folder: to write to.

    Returns:
        What the person should know of what was written, a line each.

    Raises:
        LabError: the arm has something that a LLaVA has not.
    """
    from transformers import (
        CLIPImageProcessor,
        GenerationConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    _check(arm)
    model: Any = arm.model
    encoder = model.encoder
    vision = _vision_config(encoder)
    weights = _text_weights(model.text_decoder)
    tokenizer, image_id = _tokenizer(arm)
    embedding, head = names_of_vocabulary(model.text_decoder.model)
    # LLaVA ties its output layer to an embedding of this name only; others are written out
    tied = weights[head].data_ptr() == weights[embedding].data_ptr()
    tied = tied and embedding == f"{model.text_decoder.model.base_model_prefix}.embed_tokens.weight"
    # `<image>` is never said: it gets the score of padding
    weights[embedding] = _with_row(weights[embedding], image_id, arm.tokenizer[PAD])
    weights[head] = weights[embedding] if tied else _with_row(weights[head], image_id, arm.tokenizer[PAD])
    config = _config(arm, vision, len(weights[embedding]), tied, image_id)
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    _fill_tower(llava.model.vision_tower, encoder, vision)
    _fill_projector(llava.model.multi_modal_projector, model.connector)
    _fill_text(llava, model.text_decoder, weights)
    text = config.text_config
    llava.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        suppress_tokens=[image_id],
    )
    llava.save_pretrained(folder)
    size = {"height": encoder.tower_size, "width": encoder.tower_size}
    images = CLIPImageProcessor(
        size=size,
        do_center_crop=False,
        crop_size=size,  # what vLLM and others read to count visual tokens
        image_mean=encoder.mean.flatten().tolist(),
        image_std=encoder.deviation.flatten().tolist(),
    )
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=_template(tokenizer),
        image_token=IMAGE,
        num_additional_image_tokens=int(_has_class(vision)),
    ).save_pretrained(folder)
    notes = []
    if "visual_head" in arm.built:
        notes.append("the visual head stays behind: a LLaVA answers and does not draw")
    if encoder.image_size != encoder.tower_size:
        notes.append(
            f"the arm saw images resized to {encoder.image_size} and then to {encoder.tower_size} pixels; "
            f"the exported processor resizes them to {encoder.tower_size} at once"
        )
    return notes


def _check(arm: Arm) -> None:
    """Refuse what `LlavaForConditionalGeneration` has no words for, all of it at once."""
    found = []
    for role, (spec, _) in arm.built.items():
        word = spec["name"]
        if role == "text_decoder":
            if word not in _DECODERS:
                found.append(f"text_decoder {word} is no causal language model of transformers")
            elif spec.get("adapter_dim"):
                found.append(f"text_decoder {word} has adapters of its own in its blocks (adapter_dim)")
        elif role in _EXPRESSIBLE:
            words = _EXPRESSIBLE[role]
            if word not in words:
                found.append(f"{role} {word} is none of {', '.join(words)}")
                continue
            usual = {setting.name: setting.default for setting in describe(role, word).parameters}
            found += [
                f"{role} {word} has {name}: {json.dumps(value)}"
                for name, value in spec.items()
                if name != "name" and name not in words[word] and value != usual[name]
            ]
    if found:
        raise LabError(f"a LLaVA of transformers cannot express this arm: {'; '.join(found)}")
    encoder: Any = arm.model.encoder
    if (registers := getattr(encoder.embed.config, "num_register_tokens", 0)) > 0:
        raise LabError(
            f"a LLaVA of transformers cannot express this arm: it would not drop the encoder's {registers} "
            f"register tokens"
        )


def _vision_config(encoder: Any) -> Any:
    """The configuration of the tower as it is: blocks above the chosen layer are gone."""
    given = encoder.embed.config
    settings = settings_of(given) | {
        "num_hidden_layers": len(_blocks(encoder.blocks)),
        "image_size": encoder.tower_size,
    }
    for name in ("model_type", "out_features", "out_indices", "stage_names"):  # which follow from the rest
        settings.pop(name, None)
    config = type(given)(**settings)
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False  # SigLIP's pooling
    if hasattr(config, "use_mask_token"):
        config.use_mask_token = False  # DINOv2's own pretraining
    return config


def _blocks(encoder: Any) -> nn.ModuleList:
    return encoder.layer if hasattr(encoder, "layer") else encoder.layers


def _has_class(vision: Any) -> bool:
    return "siglip" not in vision.model_type


def _config(arm: Arm, vision: Any, vocabulary: int, tied: bool, image_id: int) -> Any:
    from transformers import LlavaConfig

    model: Any = arm.model
    text = deepcopy(model.text_decoder.model.config)
    text.vocab_size, text.tie_word_embeddings = vocabulary, tied
    for name, token in (("bos", BOS), ("eos", EOS), ("pad", PAD)):
        setattr(text, f"{name}_token_id", arm.tokenizer[token])
    drops_class = _has_class(vision) and model.encoder.grid is not None
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id,
        image_seq_length=model.encoder.num_tokens,
        projector_hidden_act="linear" if arm.built["connector"][0]["name"] == "linear" else "gelu",
        vision_feature_select_strategy="default" if drops_class else "full",
        vision_feature_layer=-1,
        tie_word_embeddings=tied,
    )


def _fill_tower(tower: Any, encoder: Any, vision: Any) -> None:
    state = encoder.embed.state_dict()
    if encoder.embed.config.image_size != encoder.tower_size:  # positions as interpolated, once and for all
        patches = (encoder.tower_size // vision.patch_size) ** 2
        tokens = torch.zeros(1, patches + _has_class(vision), encoder.dim)
        places = encoder.embed.interpolate_pos_encoding(tokens, encoder.tower_size, encoder.tower_size)
        (name,) = (name for name in state if name.startswith("position_embedding"))
        state[name] = places.detach().view_as(tower.embeddings.state_dict()[name]).contiguous()
    tower.embeddings.load_state_dict(state, assign=True)
    tower.encoder.load_state_dict(encoder.blocks.state_dict(), assign=True)
    if hasattr(tower, "pre_layrnorm"):
        tower.pre_layrnorm.load_state_dict(encoder.norm.state_dict(), assign=True)
    last = "layernorm" if hasattr(tower, "layernorm") else "post_layernorm"
    # what follows the chosen layer takes no part
    setattr(tower, last, nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps))


def _fill_projector(projector: Any, connector: Any) -> None:
    if hasattr(connector, "project"):  # one map: the second is the identity
        dim = connector.project.out_features
        first, state = connector.project, {"weight": torch.eye(dim), "bias": torch.zeros(dim)}
    else:
        first, state = connector.layers[0], connector.layers[2].state_dict()
    projector.linear_1.load_state_dict(first.state_dict(), assign=True)
    projector.linear_2.load_state_dict(state, assign=True)


def _text_weights(decoder: Any) -> dict[str, Tensor]:
    """Weights of the language model under the names of transformers, adapted ones with their LoRA."""
    from peft.tuners.lora import LoraLayer

    state = {name.removeprefix("model."): value for name, value in decoder.state_dict().items()}
    for name, layer in decoder.model.named_modules():
        if isinstance(layer, LoraLayer):
            weight = f"{name}.base_layer.weight"
            with torch.no_grad():
                state[weight] = state[weight] + layer.get_delta_weight("default").to(state[weight])
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}


def _fill_text(llava: Any, decoder: Any, weights: dict[str, Tensor]) -> None:
    causal, body = decoder.model, llava.model.language_model
    family = causal.config.model_type
    _, head = names_of_vocabulary(decoder.model)
    further = (
        head.replace(".weight", ".bias") in weights or weights[head].shape[1] != llava.lm_head.in_features
    )
    if type(body) is not type(causal.base_model) or further:
        raise LabError(
            f"a LLaVA of transformers cannot express this arm: it gives {family} another output layer"
        )
    prefix = f"{causal.base_model_prefix}."
    inner = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    body.load_state_dict(inner, assign=True)
    llava.lm_head.load_state_dict({"weight": weights[head]}, assign=True)
    llava.tie_weights()


def _with_row(weight: Tensor, index: int, like: int) -> Tensor:
    """The weight with rows up to `index`, new ones equal to the row `like`."""
    missing = index + 1 - len(weight)
    return weight if missing <= 0 else torch.cat([weight, weight[like].expand(missing, -1)])


def _tokenizer(arm: Arm) -> tuple[Any, int]:
    """The tokenizer with `<image>`, and the id of that."""
    tokenizer = deepcopy(arm.tokenizer.tokenizer)
    if IMAGE not in tokenizer.get_vocab():
        tokenizer.add_tokens([IMAGE], special_tokens=True)
    if tokenizer.chat_template is None:
        tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = BOS, EOS, PAD
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # as generation wants it
    return tokenizer, tokenizer.convert_tokens_to_ids(IMAGE)


def _template(tokenizer: Any) -> str:
    """How the processor lays conversations out, whose messages are lists of texts and images."""
    if tokenizer.chat_template in (None, OWN_TEMPLATE):
        return OWN_TEMPLATE
    return _IN_ONE_TEXT + str(tokenizer.chat_template)


# Makes one text of each message's parts, as the templates of language models have it
_IN_ONE_TEXT = (
    "{%- set found = namespace(messages=[], parts=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set found.parts = [] -%}"
    "{%- set content = message['content'] -%}"
    "{%- for part in ([{'type': 'text', 'text': content}] if content is string else content) -%}"
    "{%- set found.parts = found.parts + "
    f"['{IMAGE_START}{IMAGE}{IMAGE_END}' if part['type'] == 'image' else part['text']] -%}}"
    "{%- endfor -%}"
    "{%- set found.messages = found.messages + "
    "[{'role': message['role'], 'content': found.parts | join('\n')}] -%}"
    "{%- endfor -%}"
    "{%- set messages = found.messages -%}"
)


# -- import --------------------------------------------------------------------------------------------------


def read_llava(source: Path, tokenizer: Tokenizer, added: dict[int, int | None]) -> Taken:
    """Take the parts of a checkpoint of `LlavaForConditionalGeneration`.

    Args:
        source: its folder.
        tokenizer, added: as `own_tokenizer` gives them.

    Raises:
        LabError: there is something in it that the lab has no word for.
    """
    llava = load("LlavaForConditionalGeneration", source)
    vision, layer = llava.config.vision_config, llava.config.vision_feature_layer
    family = vision.model_type.removesuffix("_vision_model")
    if family not in _FAMILIES:
        raise LabError(f"{source}: its vision tower is a {family}; the lab reads {', '.join(_FAMILIES)}")
    if not isinstance(layer, int) or layer in (0, -1 - vision.num_hidden_layers):
        raise LabError(
            f"{source}: its connector reads layers {layer} of the tower; the lab reads one block's"
        )
    whole = llava.config.vision_feature_select_strategy == "full"
    if not whole and not _has_class(vision):
        raise LabError(f"{source}: drops the first patch of a {family} tower, which has no class token")
    stated = image_settings(source)
    statistics = {name: stated[name] for name in ("image_mean", "image_std") if name in stated}
    spec: dict[str, Any] = {
        "name": "siglip" if family == "siglip" else "clip",
        "layer": layer,
        "config": settings_of(vision) | statistics,
    }
    if _has_class(vision):
        spec["keep_class"] = whole
    tower = llava.model.vision_tower
    keep = layer if layer >= 0 else vision.num_hidden_layers + 1 + layer
    del _blocks(tower.encoder)[keep:]
    weights = _below("embed", tower.embeddings) | _below("blocks", tower.encoder)
    weights.pop("embed.mask_token", None)
    if hasattr(tower, "pre_layrnorm"):
        weights |= _below("norm", tower.pre_layrnorm)
    encoder_args = (vision.image_size,)
    encoder = filled("encoder", spec, encoder_args, weights)

    names = outline(llava.config.text_config)
    weights = _below(names.base_model_prefix, llava.model.language_model)
    weights[names_of_vocabulary(names)[1]] = llava.lm_head.weight.detach()
    text_spec, decoder = text_decoder(llava.config.text_config, weights, tokenizer, added)

    word, weights = _connector(source, llava)
    connector_args = (encoder.dim, decoder.dim, encoder.num_tokens)
    connector = filled("connector", {"name": word}, connector_args, weights)
    return {
        "encoder": (spec, encoder_args, encoder),
        "connector": ({"name": word}, connector_args, connector),
        "text_decoder": (text_spec, (len(tokenizer),), decoder),
    }


_FAMILIES = ("clip", "siglip", "dinov2")


def _connector(source: Path, llava: Any) -> tuple[str, dict[str, Tensor]]:
    """The word of a projector and its weights."""
    projector, kind = llava.model.multi_modal_projector, llava.config.projector_hidden_act
    first, second = (
        (
            layer.weight.detach(),
            torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach(),
        )
        for layer in (projector.linear_1, projector.linear_2)
    )
    if kind == "linear":  # two maps in a row are one
        return "linear", {
            "project.weight": second[0] @ first[0],
            "project.bias": second[0] @ first[1] + second[1],
        }
    if kind == "gelu":
        return "mlp", {
            "layers.0.weight": first[0],
            "layers.0.bias": first[1],
            "layers.2.weight": second[0],
            "layers.2.bias": second[1],
        }
    raise LabError(f"{source}: its connector's activation is {kind}; the lab's have gelu, or none")


def _below(name: str, module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module under a name."""
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}
