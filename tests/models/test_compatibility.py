"""Every rule of what goes together: broken once, by its message, and mended as the message says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from components.fusions import prefix
from lab.config import Params, load_params
from lab.errors import LabError
from lab.graph.small import small_params
from lab.graph.system import System
from lab.models.compatibility import (
    CODES,
    GRIDDED,
    HALVES,
    PARTS,
    PER_TOKEN,
    PROMPTED,
    RECIPES,
    SQUARE,
    Combination,
    Part,
)
from lab.registry import ROLES, words

ROOT = Path(__file__).parents[2]
ALL = ["connector", "text_decoder", "visual_head"]
DRAW: dict[str, Any] = {
    "visual_head": "regression",
    "image_decoder": "transformer",
    "stages": {"instruct": {"trainable": ALL}},
}
VQ: dict[str, Any] = {
    **DRAW,
    "encoder": "vq",
    "visual_head": "codebook",
    "stages": {
        **DRAW["stages"],
        "encoder": None,
        "image_decoder": {"trainable": ["encoder", "image_decoder"]},
    },
}
FIXED = {"instruct": {"trainable": ["text_decoder", "visual_head"]}, "align": None}
TOKENIZER: dict[str, Any] = {  # images are read and drawn as the connector's tokens
    **DRAW,
    "targets": "connector",
    "stages": {**FIXED, "image_decoder": {"trainable": ["connector", "image_decoder"]}},
}
LORA = {"name": "llama", "lora_rank": 4}
GATED = {"instruct": {"trainable": ["connector", "fusion", "text_decoder"]}}
EMU = ["data", "judge", "encoder", "text_decoder", "instruct", "image_decoder", "evaluate"]
NARROW = {"name": "cross_attention", "dim_visual": 64}
GPT = {"name": "hf", "config": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}}


def trains(*parts: str) -> dict[str, Any]:
    return {"instruct": {"trainable": list(parts)}}


# what is declared, what of it is wrong, the message, and what mends it
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str, dict[str, Any]]] = {
    "a head alone": (
        DRAW,
        {"image_decoder": None},
        "visual_head regression: nothing turns its visual tokens into pixels",
        {"visual_head": None, "stages": trains("connector", "text_decoder")},
    ),
    "an image decoder alone": (
        {},
        {"image_decoder": "transformer"},
        "image_decoder transformer: nothing makes visual tokens for it",
        DRAW,
    ),
    "targets of nothing": ({}, {"targets": "connector"}, "but nothing is drawn", {"targets": "encoder"}),
    "a question to an image that is not there yet": (
        TOKENIZER,
        {"connector": {"name": "q_former", "instruction": True}},
        "targets: connector, but with instruction connector q_former reads a question",
        {"connector": {"name": "q_former", "instruction": False}},
    ),
    "drawn tokens of another width": (
        {**TOKENIZER, "stages": {**TOKENIZER["stages"], "instruct": {"trainable": [*ALL[1:], "fusion"]}}},
        {"fusion": NARROW},
        "targets: connector, but fusion cross_attention has dim_visual 64",
        {"fusion": "cross_attention"},
    ),
    "codes of continuous tokens": (
        DRAW,
        {"visual_head": "codebook"},
        "visual_head codebook: cross-entropy needs codes, and the tokens of encoder vit are continuous",
        VQ,
    ),
    "codes of a continuous connector": (
        {**TOKENIZER, "connector": "causal_transformer"},
        {"visual_head": {"name": "codebook", "codes": 64}},
        "the tokens of connector causal_transformer are continuous",
        {"connector": {"name": "causal_transformer", "codes": 64}},
    ),
    "two numbers of codes": (
        VQ,
        {"visual_head": {"name": "codebook", "codes": 99}},
        "visual_head codebook has 99 codes, encoder vq has ",
        {"encoder": {"name": "vq", "num_codes": 99}},
    ),
    "codes that are only read": (
        VQ,
        {"visual_head": None, "image_decoder": None, "stages": trains("connector", "text_decoder")},
        "encoder vq: codes lose detail for nothing",
        {"encoder": "vit"},
    ),
    "codes of a connector that are only read": (
        {},
        {"connector": {"name": "causal_transformer", "codes": 64}},
        "connector causal_transformer: codes lose detail for nothing",
        {"connector": {"name": "causal_transformer", "codes": 0}},
    ),
    "half an autoencoder": (
        DRAW,
        {"image_decoder": "vae"},
        "image_decoder vae decodes the tokens of encoder vae, not those of encoder vit",
        {"encoder": "vae"},
    ),
    "unequal halves": (
        {**DRAW, "encoder": {"name": "vae", "patch": 2}},
        {"image_decoder": "vae"},
        "image_decoder vae and encoder vae are halves of one autoencoder, but differ in patch",
        {"image_decoder": {"name": "vae", "patch": 2}},
    ),
    "codes that are only come near": (
        {**VQ, "image_decoder": "vq"},
        {"visual_head": "regression"},
        "image_decoder vq expects codes, which visual_head regression only comes near",
        {"image_decoder": "transformer"},
    ),
    "no square": (
        {**TOKENIZER, "connector": "perceiver"},
        {"connector": {"name": "perceiver", "num_latents": 12}},
        "image_decoder transformer draws from a square grid of tokens, but an image has 12",
        {"image_decoder": "detokenizer"},
    ),
    "no doubling": (
        {**TOKENIZER, "connector": "perceiver"},
        {"connector": {"name": "perceiver", "num_latents": 9}},
        "image_decoder transformer doubles its grid until it is the image, but 9 tokens do not come to 32 px",
        {"connector": {"name": "perceiver", "num_latents": 4}},
    ),
    "no tiles": (
        {**TOKENIZER, "connector": "perceiver", "image_decoder": "diffusion"},
        {"connector": {"name": "perceiver", "num_latents": 9}},
        "image_decoder diffusion lays its tokens out over the image, but 9 do not tile 32 px",
        {"connector": {"name": "perceiver", "num_latents": 4}},
    ),
    "feedback by a resampler": (
        {**DRAW, "visual_head": {"name": "regression", "feedback": "shared"}, "connector": "mlp"},
        {"connector": "perceiver"},
        "visual_head regression: feedback is shared with connector perceiver, which does not map tokens",
        {"visual_head": {"name": "regression", "feedback": "own"}},
    ),
    "feedback of another width": (
        {
            **DRAW,
            "visual_head": {"name": "diffusion", "feedback": "shared"},
            "stages": trains(*ALL, "fusion"),
        },
        {"fusion": NARROW},
        "visual_head diffusion: feedback is shared, but for fusion cross_attention the connector's",
        {"fusion": "cross_attention"},
    ),
    "a token of each query": (
        DRAW,
        {"visual_head": {"name": "queries", "mapper": "mlp", "num_queries": 8}},
        "mapper mlp makes a token of each of 8 queries, but an image has 16",
        {"visual_head": {"name": "queries", "mapper": "mlp", "num_queries": 16}},
    ),
    "a direction alone": (
        DRAW,
        {"visual_head": {"name": "regression", "loss": "cosine"}},
        "visual_head regression: a cosine leaves the length of tokens open",
        {"visual_head": {"name": "regression", "loss": "cosine", "normalise": True}},
    ),
    "a question of another width": (
        {"connector": {"name": "q_former", "instruction": True}, "stages": GATED},
        {"fusion": NARROW},
        "connector q_former: with instruction it reads words, of width 128",
        {"fusion": "cross_attention"},
    ),
    "a grid of no square": (
        {"encoder": {"name": "ensemble", "parts": ["vit", "patches"], "join": "sequence"}},
        {"connector": "pool"},
        "connector pool needs a square grid, but encoder ensemble gives 32 tokens",
        {"connector": "perceiver"},
    ),
    "a grid that does not shrink": (
        {},
        {"connector": {"name": "pixel_shuffle", "factor": 3}},
        "connector pixel_shuffle cannot shrink the 16 tokens of encoder vit that way",
        {"connector": {"name": "pixel_shuffle", "factor": 4}},
    ),
    "a grid that grows": (
        {},
        {"connector": {"name": "abstractor", "grid": 5}},
        "connector abstractor cannot shrink the 16 tokens",
        {"connector": {"name": "abstractor", "grid": 3}},
    ),
    "too few blocks to insert": (
        {"stages": GATED},
        {"fusion": {"name": "cross_attention", "every": 9}},
        "fusion cross_attention: every 9 is beyond the 4 blocks of text_decoder llama",
        {"fusion": {"name": "cross_attention", "every": 4}},
    ),
    "too few blocks to prompt": (
        {"stages": GATED},
        {"fusion": {"name": "prefix", "prompted_layers": 5}},
        "fusion prefix: 5 prompted_layers are more than the 4 blocks of text_decoder llama",
        {"fusion": {"name": "prefix", "prompted_layers": 4}},
    ),
    "attention of another family": (
        {"stages": GATED, "text_decoder": GPT},
        {"fusion": "prefix"},
        "fusion prefix prompts attention as Llama has it, not that of gpt2",
        {"fusion": "cross_attention"},
    ),
    "other heads": (
        {"stages": GATED, "text_decoder": {"name": "llama", "num_heads": 8}},
        {"fusion": "prefix"},
        "fusion prefix: num_heads 4, but text_decoder llama has 8",
        {"fusion": {"name": "prefix", "num_heads": 8}},
    ),
    "a frozen random language model": (
        {},
        {"stages": {"text_decoder": None, **trains("connector", "text_decoder.image_marks")}},
        "text_decoder llama: its weights are random and no stage trains them",
        {"stages": {"text_decoder": {}}},
    ),
    "four bits that train": (
        {"text_decoder": LORA},
        {"text_decoder": {**LORA, "quantise": "nf4_simulated"}},
        "stages.instruct.trainable: text_decoder, but weights of four bits do not train",
        {"stages": trains("connector", "text_decoder.lora")},
    ),
    "adapters that rest": (
        {"stages": trains("connector")},
        {"text_decoder": LORA},
        "text_decoder llama: lora_rank 4, but no stage trains these adapters",
        {"stages": trains("connector", "text_decoder.lora")},
    ),
    "bottlenecks that rest": (
        {"stages": trains("connector")},
        {"text_decoder": {"name": "llama", "adapter_dim": 4}},
        "text_decoder llama: adapter_dim 4, but no stage trains these adapters",
        {"stages": trains("connector", "text_decoder.adapters")},
    ),
    "adapters that are not there": (
        {},
        {"stages": trains("connector", "text_decoder.adapters")},
        "trainable: text_decoder.adapters, but text_decoder llama has none",
        {"text_decoder": {"name": "llama", "adapter_dim": 4}},
    ),
    "a language without its tokenizer": (
        {"text_decoder": {"name": "hf", "path": "language-model"}},
        {"stages": {"text_decoder": None}},
        "recipe: text_decoder hf is pretrained, and its tokenizer comes with stage text_decoder",
        {"stages": {"text_decoder": {}}},
    ),
    "a connector that rests": (
        {},
        {"stages": {"align": None, **trains("text_decoder")}},
        "connector linear: no stage trains it",
        {"stages": trains("connector", "text_decoder")},
    ),
    "gates that rest": (
        {},
        {"fusion": "cross_attention"},
        "fusion cross_attention: its gates start at 0 and no stage trains them",
        {"stages": GATED},
    ),
    "a head that rests": (
        DRAW,
        {"stages": trains("connector", "text_decoder")},
        "visual_head regression: no stage trains it",
        {"stages": trains(*ALL)},
    ),
    "nothing to train": (
        {},
        {"stages": {"align": {"trainable": ["fusion"]}}},
        "stages.align.trainable: nothing there has weights to train",
        {"stages": {"align": {"trainable": ["connector"]}}},
    ),
    "parts that never meet": (
        {},
        {"stages": {"align": None, "instruct": None}},
        "recipe: no stage puts the parts together",
        {"stages": {"instruct": {"steps": 9}}},
    ),
    "a part that is begun again": (
        {"stages": trains("connector", "encoder", "text_decoder")},
        {"recipe": ["data", "judge", "text_decoder", "instruct", "encoder", "evaluate"]},
        "recipe: encoder begins the encoder anew, which instruct has trained",
        {"recipe": ["data", "judge", "encoder", "text_decoder", "instruct", "evaluate"]},
    ),
    "captions without a branch for text": (
        {"stages": {"represent": {}}, "connector": "q_former"},
        {"connector": "perceiver"},
        "recipe: represent compares images with captions in the blocks of a q_former",
        {"connector": "q_former"},
    ),
    "representation of noise": (
        {"stages": {"represent": {}}, "connector": "q_former"},
        {"stages": {"encoder": None}},
        "recipe: represent takes a trained encoder, and none is trained before",
        {"stages": {"encoder": {}}},
    ),
    "no stage for the image decoder": (
        DRAW,
        {"recipe": ["data", "judge", "encoder", "text_decoder", "instruct", "evaluate"]},
        "recipe: image_decoder transformer is trained in stage image_decoder, which is missing",
        {"recipe": EMU},
    ),
    "a stage for no image decoder": (
        {},
        {"recipe": EMU},
        "recipe: stage image_decoder, but the system has none",
        {"recipe": [name for name in EMU if name != "image_decoder"]},
    ),
    "what an image decoder is not trained with": (
        DRAW,
        {"stages": {"image_decoder": {"trainable": ["image_decoder", "fusion"]}}},
        "stages.image_decoder.trainable: fusion; it can hold image_decoder, encoder and connector",
        {"stages": {"image_decoder": {"trainable": ["image_decoder", "encoder"]}}},
    ),
    "an image decoder that rests": (
        DRAW,
        {"stages": {"image_decoder": {"trainable": ["encoder"]}}},
        "stages.image_decoder.trainable: image_decoder is missing",
        {"stages": {"image_decoder": {"trainable": ["encoder", "image_decoder"]}}},
    ),
    "a connector that is not on the way": (
        DRAW,
        {"stages": {"image_decoder": {"trainable": ["connector", "image_decoder"]}}},
        "stages.image_decoder.trainable: connector, but images are made of the encoder's tokens",
        {"targets": "connector", "stages": FIXED},
    ),
    "a width that nobody knows": (
        {**TOKENIZER, "text_decoder": GPT},
        {"stages": {"text_decoder": None}},
        "recipe: with targets: connector stage image_decoder needs the width of text_decoder hf",
        {"stages": {"text_decoder": {}}},
    ),
    "tokens that move on": (
        DRAW,
        {"stages": trains("encoder", *ALL)},
        "recipe: instruct trains encoder after stage image_decoder, which has then learnt to read other",
        {"recipe": EMU},
    ),
    "tokens of a connector that move on": (
        TOKENIZER,
        {"stages": {"align": {"trainable": ["connector"]}}},
        "recipe: align trains connector after stage image_decoder",
        {"stages": {"align": None}},
    ),
    "tokens that move away": (
        {**TOKENIZER, "stages": {**TOKENIZER["stages"], **trains(*ALL)}, "recipe": EMU},
        {},
        "stages.image_decoder.trainable: connector, but instruct has learnt to draw its tokens before",
        {"stages": {"image_decoder": {"trainable": ["image_decoder"]}}},
    ),
    "a loss through noise": (
        {**DRAW, "visual_head": {"name": "queries", "loss": "decoder"}},
        {"recipe": EMU},
        "visual_head queries: its loss is the image decoder's, which is trained only after instruct",
        {"recipe": ["data", "judge", "encoder", "text_decoder", "image_decoder", "instruct", "evaluate"]},
    ),
    "codes that nobody learns": (
        VQ,
        {"stages": {"image_decoder": {"trainable": ["image_decoder"]}}},
        "encoder vq: codes are learnt in stage image_decoder alone; add encoder to its trainable",
        {"stages": {"image_decoder": {"trainable": ["encoder", "image_decoder"]}}},
    ),
}


def over(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A declaration with changes on top; of stages those that are named."""
    stages = {**tree.get("stages", {}), **changes.get("stages", {})}
    return deepcopy({**tree, **changes, "stages": stages})


def declared(small: dict[str, Any]) -> Params:
    return small_params(System("mine", "", "", (), small, None), Path("mine.yaml"), [])


def refused(small: dict[str, Any]) -> str:
    with pytest.raises(LabError) as caught:
        declared(small)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_go_together_is_named_and_mended(case: str) -> None:
    usual, wrong, expected, mended = CASES[case]
    if wrong:
        declared(over(usual, {}))
    assert expected in refused(over(usual, wrong))
    declared(over(over(usual, wrong), mended))


def test_every_rule_has_a_case() -> None:
    messages = [refused(over(usual, wrong)) for usual, wrong, _, _ in CASES.values()]
    for _, message in (*PARTS, *RECIPES):
        pattern = ".+".join(map(re.escape, re.split(r"\{[^}]*\}", message)))
        assert any(re.search(pattern, found) for found in messages), message


def test_all_is_named_at_once_and_once_for_all_arms() -> None:
    found = refused(over(DRAW, {"visual_head": "codebook", "fusion": "cross_attention", "mix": {"vqaa": 1}}))
    assert "no task 'vqaa'" in found
    assert "the tokens of encoder vit are continuous" in found
    assert "gates" not in found  # recipes are looked at when they are in order
    arms = ["connectors=[pool, perceiver, linear]", "connector.grid=3", "connector.mode=concat"]
    with pytest.raises(LabError) as caught:
        load_params(ROOT / "params.yaml", [*arms, "image_decoder=null"])
    assert str(caught.value).count("connector pool cannot shrink") == 1
    assert str(caught.value).count("nothing turns its visual tokens into pixels") == 1
    assert "connector linear" not in str(caught.value)


def test_parts_of_ones_own_are_given_the_benefit_of_the_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of words that they do not know the tables ask nothing; parts refuse by themselves what they cannot."""
    for folder, arguments in (("encoders", "image_size"), ("connectors", "dim_in, dim_out, num_tokens_in")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(OWN.format(arguments=arguments))
    assert "no encoder 'mine'" in refused(over(VQ, {"encoder": "mine"}))
    monkeypatch.setenv("LAB_COMPONENTS", str(tmp_path))
    declared(over(VQ, {"encoder": "mine"}))
    shared = {"visual_head": {"name": "regression", "feedback": "shared"}, "connector": "mine"}
    declared(over(DRAW, shared))
    declared(over(DRAW, {**shared, "stages": {"align": None, **trains("text_decoder", "visual_head")}}))


OWN = '''"""Mine.

Paper: none
"""
__all__ = ["Mine"]


class Mine:
    def __init__(self, {arguments}, *, tables: int = 3) -> None: ...
'''


def test_what_settings_do_not_tell_is_not_held_against_them() -> None:
    for encoder in ("timm", {"name": "clip", "path": "clip"}):
        declared(over(DRAW, {"encoder": encoder, "connector": {"name": "pool", "grid": 3}}))
    declared(over({"stages": GATED}, {"text_decoder": {"name": "hf", "path": "model"}, "fusion": "prefix"}))
    declared(over(VQ, {"encoder": {"name": "vq", "path": "model"}, "stages": {"image_decoder": {}}}))


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ({"name": "vit", "patch_size": 16}, 4),
        ({"name": "vq", "downsample": 4}, 64),
        ({"name": "vae", "downsample": 4, "patch": 2}, 16),
        ({"name": "siglip", "pool": 3}, 9),
        ({"name": "clip", "pool": 3, "keep_class": True}, 10),
        ({"name": "clip"}, None),
        ({"name": "ensemble", "parts": ["vit", {"name": "patches", "patch_size": 16}]}, 16),
        (
            {"name": "ensemble", "parts": ["vit", {"name": "patches", "patch_size": 16}], "join": "sequence"},
            20,
        ),
        ({"name": "ensemble", "parts": ["vit", "clip"], "join": "sequence"}, None),
        ({"name": "ensemble", "parts": ["vti"]}, None),
    ],
)
def test_tokens_are_counted_from_settings(encoder: dict[str, Any], expected: int | None) -> None:
    parts: dict[str, Any] = {role: Part(role) for role in ROLES}
    parts |= {"encoder": Part.of("encoder", encoder), "connector": Part.of("connector", "linear")}
    assert Combination(**parts, targets="encoder", image_size=32).tokens_connected == expected


def test_tables_name_what_there_is() -> None:
    tables = {
        "encoder": (*HALVES, "vq"),
        "connector": (*PER_TOKEN, *GRIDDED, "causal_transformer", "q_former", "perceiver"),
        "text_decoder": ("llama", "hf"),
        "fusion": ("sequence", "cross_attention", "prefix"),
        "visual_head": ("regression", "queries", "codebook"),
        "image_decoder": (*SQUARE, *HALVES, "detokenizer"),
    }
    for role, named in tables.items():
        assert set(named) <= set(words(role))
    assert set(CODES) <= {*words("encoder"), *words("connector")}
    assert prefix.FAMILIES == PROMPTED
