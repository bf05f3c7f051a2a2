"""Small parts of every role, and tiny checkpoints in the format of transformers for those that load one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

# what composition would supply, by role: image 32 px, 16 tokens of width 24, language model of width 40; a
# fusion is hooked to the small llama
SUPPLIED = {
    "encoder": (32,),
    "connector": (24, 40, 16),
    "text_decoder": (50,),
    "fusion": (32, 2, 16),
    "visual_head": (40, 24, 16),
    "image_decoder": (24, 16, 32),
}

# settings that make a part quick; a new part needs an entry only when its defaults are slow or need a file;
# "role/word" tells parts of one word apart
SMALL: dict[str, dict[str, Any]] = {
    "vit": {"dim": 32, "depth": 2},
    "patches": {"dim": 32},
    "clip": {"path": "clip"},
    "siglip": {"path": "siglip"},
    "dinov2": {"path": "dinov2"},
    "timm": {"model": "test_vit"},
    "ensemble": {"parts": [{"name": "vit", "dim": 32, "depth": 1}, {"name": "patches", "dim": 32}]},
    "q_former": {"dim": 32, "depth": 3, "num_queries": 5},
    "perceiver": {"num_latents": 5},
    "llama": {"dim": 32, "depth": 2},
    "hf": {"path": "gpt2"},
    "transformer": {"dim": 32},
    "diffusion": {"dim": 32, "depth": 2},
    "detokenizer": {"dim": 32, "depth": 1, "image_dim": 32, "pixel_settings": {"dim": 32}},
    "stable_diffusion": {"path": "stable_diffusion", "num_queries": 5, "dim": 32, "depth": 1, "steps": 2},
    "visual_head/diffusion": {"width": 32, "steps": 3},
    "flow": {"steps": 3},
}

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
}
DECODER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def stable_diffusion(folder: Path) -> Any:
    """A tiny pipeline of diffusers for images of 16 px; its tokenizer knows two letters."""
    import diffusers
    import transformers as hf

    (folder / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = hf.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=7)
    text = {"vocab_size": 4, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **DECODER}
    vae = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=[8, 16], norm_num_groups=4, **vae),
        text_encoder=hf.CLIPTextModel(hf.CLIPTextConfig(max_position_embeddings=7, **text)),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=[16, 32],
            layers_per_block=1,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session", autouse=True)
def _offline() -> None:
    """Nothing here may wait for the network."""
    import huggingface_hub.constants
    import transformers.utils.logging

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a tiny random checkpoint of a family, once, and give its folder."""
    import transformers as hf

    def make(family: str) -> nn.Module:
        match family:
            case "clip":
                return hf.CLIPVisionModel(hf.CLIPVisionConfig(**TOWER))
            case "whole_clip":
                text = {"vocab_size": 60, "eos_token_id": 2, "bos_token_id": 1, "num_hidden_layers": 1}
                return hf.CLIPModel(hf.CLIPConfig(vision_config=TOWER, text_config=text))
            case "siglip":
                return hf.SiglipVisionModel(hf.SiglipVisionConfig(**TOWER))
            case "dinov2":
                return hf.Dinov2Model(hf.Dinov2Config(**TOWER))
            case "dinov2_with_registers":
                return hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**TOWER))
            case "llama":
                return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=40, **DECODER))
            case "gpt2":
                ends = {"bos_token_id": 1, "eos_token_id": 2}
                return hf.GPT2LMHeadModel(
                    hf.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, **ends)
                )
            case "qwen2":
                return hf.Qwen2ForCausalLM(hf.Qwen2Config(vocab_size=40, num_key_value_heads=1, **DECODER))
            case "bloom":
                return hf.BloomForCausalLM(hf.BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=2))
            case "gemma2":
                small = {"vocab_size": 40, "num_key_value_heads": 1, "head_dim": 16, **DECODER}
                return hf.Gemma2ForCausalLM(hf.Gemma2Config(final_logit_softcapping=1e-3, **small))
            case "stable_diffusion":
                return stable_diffusion(folder)
        raise AssertionError(family)

    folder = tmp_path_factory.mktemp("checkpoints")

    def write(family: str) -> Path:
        if not (folder / family).exists():
            make(family).save_pretrained(folder / family)
        return folder / family

    return write


@pytest.fixture
def build_small(checkpoints: Callable[[str], Path]) -> Callable[..., nn.Module]:
    """Build a part of a role with small settings; keywords override them."""
    from lab.registry import build

    def small(role: str, word: str, **settings: Any) -> nn.Module:
        settings = {**SMALL.get(f"{role}/{word}", SMALL.get(word, {})), **settings}
        if "path" in settings:
            settings["path"] = str(checkpoints(settings["path"]))
        return build(role, {"name": word, **settings}, *SUPPLIED[role])

    return small


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
