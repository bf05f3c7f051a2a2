"""Connectors: parity with public implementations, and what becomes of the order of image tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.errors import LabError

Build = Callable[..., Any]


def draw(module: nn.Module) -> None:
    """Weights large enough that a swapped axis or head shows."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)


def copy(target: nn.Module, source: nn.Module, renames: dict[str, str], without: set[str]) -> None:
    """Load source's weights into target by renames of name prefixes; exactly `without` stay as they are."""
    state: dict[str, Tensor] = {}
    for name, value in source.state_dict().items():
        (prefix,) = [old for old in renames if name == old or name.startswith(old + ".")]
        state[renames[prefix] + name[len(prefix) :]] = value.clone()
    report = target.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert set(report.missing_keys) == without


def blip_renames(depth: int) -> dict[str, str]:
    """Of the query branch of BLIP-2 and InstructBLIP, which attends to the image in every second layer."""
    renames = {}
    for i in range(depth):
        old, new = f"encoder.layer.{i}", f"blocks.{i}"
        attentions = [("attention", "attend")] + ([("crossattention", "cross")] if i % 2 == 0 else [])
        for theirs_name, ours_name in attentions:
            for part in ("query", "key", "value"):
                renames[f"{old}.{theirs_name}.attention.{part}"] = f"{new}.{ours_name}.{part}"
            renames[f"{old}.{theirs_name}.output.dense"] = f"{new}.{ours_name}.out"
            renames[f"{old}.{theirs_name}.output.LayerNorm"] = f"{new}.norm_{ours_name}"
        renames[f"{old}.intermediate_query.dense"] = f"{new}.mlp.0"
        renames[f"{old}.output_query.dense"] = f"{new}.mlp.2"
        renames[f"{old}.output_query.LayerNorm"] = f"{new}.norm_mlp"
    return renames


def test_q_former_equals_transformers(build_small: Build) -> None:
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 5}
    config = Blip2QFormerConfig(encoder_hidden_size=24, cross_attention_frequency=2, **sizes)
    theirs = Blip2QFormerModel(config).eval()
    draw(theirs)
    ours = build_small(
        "connector", "q_former", dim=32, depth=5, num_heads=4, mlp_ratio=2.0, positions=False
    ).eval()
    nn.init.normal_(ours.queries)
    renames = {"layernorm": "norm_queries", **blip_renames(5)}
    # theirs has neither the queries, the norm on the image (`ln_vision`) nor the projection
    copy(ours, theirs, renames, {"queries", *_keys("norm_image", "project")})

    tokens = torch.randn(3, 16, 24)
    expected = theirs(
        query_embeds=ours.queries.expand(3, -1, -1), encoder_hidden_states=ours.norm_image(tokens)
    )
    torch.testing.assert_close(ours(tokens), ours.project(expected.last_hidden_state), atol=1e-5, rtol=0)


def test_instruction_aware_q_former_equals_transformers(build_small: Build) -> None:
    from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 5}
    lengths = {"vocab_size": 40, "max_position_embeddings": 9}
    config = InstructBlipQFormerConfig(
        encoder_hidden_size=24, cross_attention_frequency=2, **sizes, **lengths
    )
    theirs = InstructBlipQFormerModel(config).eval()
    draw(theirs)
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data += 1  # else little of the text reaches the queries
    settings = {"dim": 32, "depth": 5, "num_heads": 4, "mlp_ratio": 2.0, "positions": False}
    ours = build_small("connector", "q_former", instruction=True, max_text=9, **settings).eval()
    nn.init.normal_(ours.queries)
    renames = {"embeddings.layernorm": "norm_queries", **blip_renames(5)}
    for i in range(4):
        renames[f"encoder.layer.{i}.intermediate.dense"] = f"text_mlps.{i}.mlp.0"
        renames[f"encoder.layer.{i}.output.dense"] = f"text_mlps.{i}.mlp.2"
        renames[f"encoder.layer.{i}.output.LayerNorm"] = f"text_mlps.{i}.norm"
    words, places = theirs.embeddings.word_embeddings, theirs.embeddings.position_embeddings
    # theirs looks words up; ours projects embeddings, here a word's place in the vocabulary
    ours.project_text.weight.data = words.weight.data.T.clone()
    ours.text_positions.data = places.weight.data.clone()
    unread = nn.Module()  # theirs without its tables, and without the last layer's text, which goes nowhere
    unread.embeddings, unread.encoder = nn.Module(), theirs.encoder
    unread.embeddings.layernorm = theirs.embeddings.layernorm
    last = theirs.encoder.layer[4]
    kept = last.intermediate, last.output
    del last.intermediate, last.output
    own = {"queries", "project_text.weight", "text_positions", *_keys("norm_image", "project")}
    copy(ours, unread, renames, own)
    last.intermediate, last.output = kept

    tokens, ids = torch.randn(3, 16, 24), torch.randint(1, 40, (3, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    expected = theirs(
        input_ids=ids,
        attention_mask=torch.cat([mask.new_ones(3, 5), mask], dim=1).long(),
        query_embeds=ours.queries.expand(3, -1, -1),
        encoder_hidden_states=ours.norm_image(tokens),
    ).last_hidden_state[:, :5]
    read = ours(tokens, nn.functional.one_hot(ids, 40).float(), mask)
    torch.testing.assert_close(read, ours.project(expected), atol=1e-5, rtol=0)
    assert (ours(tokens, nn.functional.one_hot(ids.flip(1), 40).float(), mask) - read).abs().max() > 0.1


@pytest.mark.parametrize("head_dim", [None, 8])
def test_perceiver_equals_transformers(head_dim: int | None, build_small: Build) -> None:
    from transformers import IdeficsConfig
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = IdeficsConfig(
        vision_config={"embed_dim": 24}, perceiver_config={"qk_layer_norms_perceiver": False}
    )
    theirs = IdeficsPerceiverResampler(
        config, embed_dim=24, depth=3, n_heads=4, head_dim=head_dim or 6, n_latents=5
    ).eval()
    draw(theirs)
    settings = {"num_latents": 5, "depth": 3, "num_heads": 4, "head_dim": head_dim, "positions": False}
    ours = build_small("connector", "perceiver", **settings).eval()
    for block in ours.blocks:
        block.mlp[2] = nn.ReLU()  # theirs is neither Flamingo's squared ReLU nor OpenFlamingo's GELU
    renames = {"layer_norm": "norm"}
    for i in range(3):
        attention, mlp, new = f"blocks.{i}.0", f"blocks.{i}.1", f"blocks.{i}"
        renames |= {
            f"{attention}.context_layer_norm": f"{new}.norm_image",
            f"{attention}.latents_layer_norm": f"{new}.norm_latents",
            f"{attention}.q_proj": f"{new}.attend.query",
            f"{attention}.k_proj": f"{new}.attend.key",
            f"{attention}.v_proj": f"{new}.attend.value",
            f"{attention}.output_proj": f"{new}.attend.out",
            f"{mlp}.ln": f"{new}.mlp.0",
            f"{mlp}.fc": f"{new}.mlp.1",
            f"{mlp}.c_proj": f"{new}.mlp.3",
        }
    weights = theirs.latents.detach().clone()
    del theirs.latents  # (M, D_v); ours has a leading axis for the batch
    copy(ours, theirs, renames, {"latents", *_keys("project")})
    theirs.latents = nn.Parameter(weights)
    ours.latents.data = weights[None].clone()

    tokens = torch.randn(3, 16, 24)
    torch.testing.assert_close(ours(tokens), ours.project(theirs(tokens)), atol=1e-5, rtol=0)


def _keys(*modules: str) -> set[str]:
    return {f"{module}.{name}" for module in modules for name in ("weight", "bias")}


@pytest.mark.parametrize("word", ["q_former", "perceiver"])
def test_resamplers_see_the_order_of_tokens_by_positions_only(word: str, build_small: Build) -> None:
    connector = build_small("connector", word, positions=False).eval()
    tokens = torch.randn(2, 16, 24)
    shuffled = tokens[:, torch.randperm(16)]
    torch.testing.assert_close(connector(shuffled), connector(tokens), atol=1e-5, rtol=0)
    assert connector(torch.randn(2, 7, 24)).shape == (2, 5, 40)  # any number of image tokens
    seeing = build_small("connector", word).eval()
    assert not torch.allclose(seeing(shuffled), seeing(tokens), atol=1e-3)


@pytest.mark.parametrize("word", ["linear", "mlp"])
def test_token_wise_connectors_keep_the_order(word: str, build_small: Build) -> None:
    connector = build_small("connector", word)
    tokens, order = torch.randn(2, 16, 24), torch.randperm(16)
    torch.testing.assert_close(connector(tokens[:, order]), connector(tokens)[:, order])
    placed = build_small("connector", word, positions=True)
    assert not torch.allclose(placed(tokens[:, order]), placed(tokens)[:, order], atol=1e-3)


def test_q_former_attends_to_the_image_where_it_says(build_small: Build) -> None:
    connector = build_small("connector", "q_former", depth=5, cross_attention_frequency=2)
    assert [block.cross is not None for block in connector.blocks] == [True, False, True, False, True]


def test_perceiver_knows_both_activations(build_small: Build) -> None:
    x = torch.tensor([-2.0, 3.0])
    squared, gelu = (
        build_small("connector", "perceiver", activation=name).blocks[0].mlp[2](x)
        for name in ("squared_relu", "gelu")
    )
    assert squared.tolist() == [0.0, 9.0]
    torch.testing.assert_close(gelu, nn.functional.gelu(x))


def test_mlp_counts_hidden_layers(build_small: Build) -> None:
    layers = build_small("connector", "mlp", hidden_layers=2).layers
    assert [type(layer).__name__ for layer in layers] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    with pytest.raises(LabError, match="hidden_layers must be at least 1"):
        build_small("connector", "mlp", hidden_layers=0)


@pytest.mark.parametrize("word", ["q_former", "perceiver"])
def test_widths_that_do_not_split_are_refused(word: str, build_small: Build) -> None:
    with pytest.raises(LabError, match="not a multiple of num_heads 7"):
        build_small("connector", word, num_heads=7)
