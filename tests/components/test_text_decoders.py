"""Causality, masks, caches, adapters and four bits of text decoders; models equal transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.layers.nf4 import VALUES, rounded
from lab.errors import LabError
from lab.registry import words

Build = Callable[..., Any]
FAMILIES = ["llama", "gpt2", "qwen2", "bloom"]
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**SIZE, "intermediate_size": 48, "num_key_value_heads": 1}
NEW: dict[str, dict[str, Any]] = {  # from scratch, by their settings
    "opt": {"model_type": "opt", **SIZE, "word_embed_proj_dim": 32, "ffn_dim": 48},
    "gemma2": {"model_type": "gemma2", **GROUPED, "head_dim": 12, "final_logit_softcapping": None},
    "mpt": {"model_type": "mpt", "d_model": 32, "n_layers": 2, "n_heads": 2},
}
every_decoder = pytest.mark.parametrize(
    ("word", "settings"),
    [(word, {}) for word in words("text_decoder")]
    + [("hf", {"path": family}) for family in FAMILIES]
    + [("hf", {"config": config}) for config in NEW.values()],
    ids=words("text_decoder") + [f"hf-{family}" for family in [*FAMILIES, *NEW]],
)
LENGTH, PADDING = 9, 4


def causal(mask: Tensor) -> Tensor:
    """What is seen, (B, T, T), where a mask (B, T) says what is real."""
    return torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril() & mask.unsqueeze(1)


@pytest.fixture
def decoder(word: str, settings: dict[str, Any], build_small: Build) -> Any:
    return build_small("text_decoder", word, **settings).eval()


@pytest.fixture
def embeds(decoder: Any) -> Tensor:
    return decoder.embed(torch.randint(0, 40, (2, LENGTH))).detach()


@every_decoder
@pytest.mark.parametrize("changed", range(1, LENGTH))
def test_a_later_token_changes_no_earlier_logit(decoder: Any, embeds: Tensor, changed: int) -> None:
    before = decoder.logits(decoder(embeds))
    embeds[:, changed] = torch.randn_like(embeds[:, changed])
    after = decoder.logits(decoder(embeds))
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, changed], after[:, changed])


@every_decoder
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_logit(decoder: Any, embeds: Tensor, side: str) -> None:
    alone = decoder(embeds)
    padding = torch.randn(2, PADDING, decoder.dim)
    mask = torch.ones(2, LENGTH + PADDING, dtype=torch.bool)
    if side == "left":
        mask[:, :PADDING] = False
        padded = decoder(torch.cat([padding, embeds], 1), mask)[:, PADDING:]
    else:
        mask[:, LENGTH:] = False
        padded = decoder(torch.cat([embeds, padding], 1), mask)[:, :LENGTH]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


@every_decoder
@pytest.mark.parametrize("places", [[1, 2, 7, 12], []], ids=["some", "none"])
def test_wanted_states_and_their_gradients_are_as_ever(
    decoder: Any, embeds: Tensor, places: list[int]
) -> None:
    wanted, found = torch.tensor(places, dtype=torch.int64), []
    for told in (None, wanted):
        decoder.zero_grad()
        inputs = embeds.clone().requires_grad_()
        states = decoder(inputs, wanted=told).flatten(0, 1)[wanted]
        decoder.logits(states).square().sum().backward()
        found.append((states, inputs.grad, *(p.grad for p in decoder.parameters() if p.grad is not None)))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_last_mlp_runs_where_states_are_wanted(build_small: Build) -> None:
    decoder, sizes = build_small("text_decoder", "llama"), []
    for block in decoder.layers:
        block.mlp.up_proj.register_forward_hook(
            lambda layer, args, output: sizes.append(output[..., 0].numel())
        )
    embeds = decoder.embed(torch.randint(0, 40, (2, LENGTH)))
    decoder(embeds, wanted=torch.tensor([3, 4, 17]))
    assert sizes == [2 * LENGTH] * (len(decoder.layers) - 1) + [3]
    sizes.clear()
    decoder(embeds)
    assert sizes == [2 * LENGTH] * len(decoder.layers)


@every_decoder
def test_padding_brings_no_nan_into_gradients(decoder: Any, embeds: Tensor) -> None:
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :3] = False
    embeds.requires_grad_()
    decoder.logits(decoder(embeds, mask))[mask].square().sum().backward()
    assert embeds.grad is not None
    assert embeds.grad.isfinite().all()
    assert not embeds.grad[0, :3].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())


@every_decoder
@pytest.mark.parametrize("padded", [False, True])
def test_cached_equals_uncached(decoder: Any, embeds: Tensor, padded: bool) -> None:
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    if padded:
        mask[0, :2] = False
    whole = decoder(embeds, mask)
    cache = decoder.new_cache()
    pieces = [decoder(embeds[:, :5], mask[:, :5], cache=cache)]  # a prompt, then one token at a time
    pieces += [decoder(embeds[:, t : t + 1], mask[:, : t + 1], cache=cache) for t in range(5, LENGTH)]
    torch.testing.assert_close(torch.cat(pieces, 1)[mask], whole[mask], atol=1e-5, rtol=0)


@every_decoder
def test_a_cache_can_be_cropped(decoder: Any, embeds: Tensor) -> None:
    whole, cache = decoder(embeds), decoder.new_cache()
    decoder(torch.cat([embeds[:, :4], torch.randn_like(embeds[:, :3])], 1), cache=cache)
    cache.crop(4)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    rest = decoder(embeds[:, 4:], mask, cache=cache)
    torch.testing.assert_close(rest, whole[:, 4:], atol=1e-5, rtol=0)


@every_decoder
def test_layers_are_the_blocks(decoder: Any, embeds: Tensor) -> None:
    seen: list[Tensor] = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    decoder(embeds)
    assert len(seen) == 2
    assert all(x.shape == embeds.shape for x in seen)


@every_decoder
def test_a_mask_may_say_what_each_position_sees(decoder: Any, embeds: Tensor) -> None:
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :2] = False  # whose rows see nothing at all
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    expected, seen = decoder(embeds, mask), causal(mask)
    states = decoder(embeds, seen, positions)
    assert states.isfinite().all()
    torch.testing.assert_close(states[mask], expected[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(decoder(embeds, causal(mask | True)), decoder(embeds), atol=1e-5, rtol=0)

    cache = decoder.new_cache()
    runs = [(0, 4), (4, 5), (5, LENGTH)]
    pieces = [decoder(embeds[:, a:b], seen[:, a:b, :b], positions[:, a:b], cache) for a, b in runs]
    torch.testing.assert_close(torch.cat(pieces, 1)[mask], expected[mask], atol=1e-5, rtol=0)


@every_decoder
def test_positions_can_see_what_comes_later(decoder: Any, embeds: Tensor) -> None:
    """A block that sees itself, then text: a change reaches those who see it and nobody else."""
    seen = causal(torch.ones(2, LENGTH, dtype=torch.bool))
    seen[:, :4, :4] = True
    before = decoder(embeds, seen)
    embeds[:, 3] = torch.randn(2, 32)  # the last of the block
    after = decoder(embeds, seen)
    assert (before - after).abs().amax(dim=2).gt(1e-4).all()
    embeds[:, 5] = torch.randn(2, 32)  # text
    assert torch.equal(decoder(embeds, seen)[:, :5], after[:, :5])


def test_an_image_at_one_position_is_a_set(build_small: Build) -> None:
    """With a block that sees itself at one position, the order of its tokens means nothing to the text."""
    decoder = build_small("text_decoder", "llama").eval()
    embeds = torch.randn(2, LENGTH, 32)
    seen = causal(torch.ones(2, LENGTH, dtype=torch.bool))
    seen[:, 1:5, 1:5] = True
    positions = torch.tensor([0, 1, 1, 1, 1, 2, 3, 4, 5]).expand(2, -1)
    before = decoder(embeds, seen, positions)
    embeds[:, 1:5] = embeds[:, [3, 1, 4, 2]]
    after = decoder(embeds, seen, positions)
    torch.testing.assert_close(after[:, 5:], before[:, 5:], atol=1e-5, rtol=0)
    torch.testing.assert_close(after[:, 1:5], before[:, [3, 1, 4, 2]], atol=1e-5, rtol=0)


@every_decoder
@pytest.mark.parametrize(
    "adapters", [{"lora_rank": 2}, {"adapter_dim": 3}, {"lora_rank": 2, "adapter_dim": 3}], ids=str
)
def test_adapters_leave_the_outputs_as_they_were_at_first(
    word: str,
    settings: dict[str, Any],
    adapters: dict[str, int],
    build_small: Build,
    decoder: Any,
    embeds: Tensor,
) -> None:
    adapted = build_small("text_decoder", word, **settings, **adapters).eval()
    adapted.load_state_dict(decoder.state_dict())  # a state dict that knows nothing of adapters
    assert torch.equal(adapted(embeds), decoder(embeds))
    assert not decoder.adapter_parameters()

    added = dict(adapted.adapter_parameters())
    assert added
    assert all(parameter.requires_grad for parameter in adapted.parameters())
    adapted(embeds).square().sum().backward()
    ends = ("lora_B.default.weight", "up.weight", "up.bias")
    assert all(p.grad is not None and p.grad.any() for name, p in added.items() if name.endswith(ends))
    with torch.no_grad():
        for parameter in added.values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert not torch.allclose(adapted(embeds), decoder(embeds), atol=1e-3)

    for again in (build_small("text_decoder", word, **settings, **adapters).eval(), deepcopy(adapted)):
        again.load_state_dict(adapted.state_dict())
        assert torch.equal(again(embeds), adapted(embeds))


def test_adapters_follow_the_mlp_of_each_block(build_small: Build) -> None:
    decoder = build_small("text_decoder", "llama", adapter_dim=3, lora_rank=2).eval()
    embeds = torch.randn(2, LENGTH, 32)
    bottlenecks = [name for name, _ in decoder.adapter_parameters() if ".adapter." in name]
    assert bottlenecks[0] == "model.model.layers.0.adapter.down.weight"
    assert sum(decoder.get_parameter(name).numel() for name in bottlenecks) == 2 * (2 * 3 * 32 + 3 + 32)
    made: list[Tensor] = []
    block = decoder.layers[0]
    block.mlp.register_forward_hook(lambda _, args, output: made.append(output))
    before = decoder(embeds)
    with torch.no_grad():
        block.adapter.up.bias.fill_(1.0)  # an adapter that adds 1 to what the MLP gives
    after = decoder(embeds)
    torch.testing.assert_close(made[1] - made[0], torch.ones_like(made[0]))
    assert not torch.allclose(before, after)


def test_a_block_without_an_mlp_at_its_end_takes_no_adapter(build_small: Build) -> None:
    config = {"model_type": "mixtral", **GROUPED, "num_local_experts": 2}
    with pytest.raises(LabError, match=r"adapter_dim: no MLP .* MixtralDecoderLayer"):
        build_small("text_decoder", "hf", config=config, adapter_dim=2)


@every_decoder
def test_quantised_layers_hold_numbers_of_four_bits(
    word: str, settings: dict[str, Any], build_small: Build, decoder: Any, embeds: Tensor
) -> None:
    adapted = {**settings, "quantise": "nf4_simulated", "lora_rank": 2, "adapter_dim": 2}
    quantised = build_small("text_decoder", word, **adapted).eval()
    quantised.load_state_dict(decoder.state_dict())  # of full precision
    plain = decoder.state_dict()
    linears = list(quantised.base_linears())
    assert len(linears) >= 8
    for name, layer in linears:
        original = plain[name.replace(".base_layer", "") + ".weight"]
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T  # Conv1D
        original = original if isinstance(layer, nn.Linear) else original.T
        assert torch.equal(weight, rounded(original))
        assert all(len(block.unique()) <= 16 for block in weight.flatten().split(64))
    changed = {name.replace(".base_layer", "") + ".weight" for name, _ in linears}
    for name, value in quantised.state_dict().items():
        below = name.replace(".base_layer", "")
        if below in plain:
            assert torch.equal(value, plain[below]) == (below not in changed)
    states = quantised(embeds)
    assert not torch.equal(states, decoder(embeds))

    again = build_small("text_decoder", word, **adapted).eval()
    again.load_state_dict(quantised.state_dict())  # rounding twice is rounding once
    assert torch.equal(again(embeds), states)


def test_numbers_of_four_bits_are_quantiles_of_the_normal_distribution() -> None:
    end = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))  # leaves half a step on either side
    above = torch.special.ndtri(torch.linspace(end, 0.5, 9, dtype=torch.float64))
    below = -torch.special.ndtri(torch.linspace(end, 0.5, 8, dtype=torch.float64))
    values = torch.cat([below, above[:-1]]).sort().values
    torch.testing.assert_close(
        torch.tensor(VALUES, dtype=torch.float64), values / values.max(), atol=1e-6, rtol=0
    )


def test_rounding_keeps_the_largest_and_goes_to_the_nearest() -> None:
    weight = torch.randn(7, 33)  # not a whole number of blocks
    scale = torch.stack([block.abs().max() for block in weight.flatten().split(64)])
    scale = scale.repeat_interleave(64)[: weight.numel()].view_as(weight)
    choices = torch.tensor(VALUES) * scale.unsqueeze(-1)  # (7, 33, 16)
    nearest = (choices - weight.unsqueeze(-1)).abs().argmin(dim=2, keepdim=True)
    assert torch.equal(rounded(weight), choices.gather(2, nearest).squeeze(2))
    assert not rounded(torch.zeros(3, 5)).any()
    assert rounded(weight.double()).dtype == torch.float64


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_four_bits_without_their_library_are_refused(build_small: Build) -> None:
    with pytest.raises(LabError, match="nf4 needs bitsandbytes; nf4_simulated"):
        build_small("text_decoder", "llama", dim=64, quantise="nf4")


def test_four_bits_equal_their_simulation(build_small: Build) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    settings = {"dim": 64, "intermediate_size": 128, "lora_rank": 2}
    simulated = build_small("text_decoder", "llama", **settings, quantise="nf4_simulated").eval()
    packed, fresh = (
        build_small("text_decoder", "llama", **settings, quantise="nf4").eval() for _ in range(2)
    )
    packed.load_state_dict(simulated.state_dict())
    embeds = torch.randn(2, LENGTH, 64)
    torch.testing.assert_close(packed(embeds), simulated(embeds), atol=1e-5, rtol=0)
    assert packed.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    packed(embeds).square().sum().backward()
    for name, parameter in packed.adapter_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any() == ("lora_B" in name)

    state = packed.state_dict()
    assert state.keys() == simulated.state_dict().keys()
    for other in (simulated, deepcopy(packed), fresh):
        other.load_state_dict(state)
        torch.testing.assert_close(other(embeds), packed(embeds), atol=1e-5, rtol=0)
    with pytest.raises(LabError, match=r"nn\.Linear only, not Conv1D"):
        build_small("text_decoder", "hf", quantise="nf4")
    with pytest.raises(LabError, match="multiples of 64, not 32"):
        build_small("text_decoder", "llama", quantise="nf4")


def test_lora_targets_can_be_named(build_small: Build) -> None:
    decoder = build_small("text_decoder", "llama", lora_rank=2, lora_targets="q_proj, v_proj")
    assert {name.split(".")[-4] for name, _ in decoder.adapter_parameters()} == {"q_proj", "v_proj"}
    with pytest.raises(LabError, match="nonsense"):
        build_small("text_decoder", "llama", lora_rank=2, lora_targets="nonsense")


def test_embeddings_can_be_tied(build_small: Build) -> None:
    tied, free = (build_small("text_decoder", "llama", tie_embeddings=tie) for tie in (True, False))
    difference = sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters())
    assert difference == 50 * 32


@pytest.mark.parametrize("family", FAMILIES)
def test_pretrained_equals_transformers(
    family: str, build_small: Build, checkpoints: Callable[[str], Path]
) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.randint(0, 40, (2, LENGTH))
    ours = build_small("text_decoder", "hf", path=family).eval()
    theirs = AutoModelForCausalLM.from_pretrained(checkpoints(family)).eval()
    logits = ours.logits(ours(ours.embed(ids)))
    assert logits.shape[-1] == 50  # grown from 40
    torch.testing.assert_close(logits[..., :40], theirs(input_ids=ids).logits, atol=1e-5, rtol=0)


def test_llama_is_that_of_transformers(build_small: Build) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 40}
    far = {"rope_theta": 5e5, "norm_eps": 1e-5, "max_positions": 64, "tie_embeddings": False}
    scaling = {"rope_type": "linear", "factor": 2.0}
    ours = build_small("text_decoder", "llama", **settings, **far, rope_scaling=scaling).eval()
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=40,
        rope_parameters={**scaling, "rope_theta": 5e5},
        rms_norm_eps=1e-5,
        max_position_embeddings=64,
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict(ours.model.state_dict())
    ids = torch.randint(0, 50, (2, LENGTH))
    logits = ours.logits(ours(ours.embed(ids)))
    torch.testing.assert_close(logits, theirs(input_ids=ids).logits, atol=1e-5, rtol=0)
    plain = build_small("text_decoder", "llama", **settings, tie_embeddings=False).eval()
    plain.load_state_dict(ours.state_dict())
    assert not torch.allclose(plain.logits(plain(plain.embed(ids))), logits, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 5}, "twice num_heads 5"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
    ],
)
def test_impossible_heads_are_refused(settings: dict[str, int], message: str, build_small: Build) -> None:
    with pytest.raises(LabError, match=message):
        build_small("text_decoder", "llama", **settings)


@pytest.mark.parametrize(
    "adapted", [{}, {"lora_rank": 2, "adapter_dim": 8, "quantise": "nf4_simulated"}], ids=str
)
def test_full_size_is_built_without_memory(adapted: dict[str, Any]) -> None:
    from lab.registry import build

    vicuna = {"dim": 4096, "depth": 32, "num_heads": 32, "intermediate_size": 11008, "tie_embeddings": False}
    with torch.device("meta"):
        llama = build("text_decoder", {"name": "llama", **vicuna, **adapted}, 32000)
        opt = {"model_type": "opt", "hidden_size": 2560, "word_embed_proj_dim": 2560, "ffn_dim": 10240}
        config = {**opt, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 50272}
        hf = build("text_decoder", {"name": "hf", "config": config, **adapted}, 50275)
    for decoder, published in ((llama, 6_738_415_616), (hf, 2_651_596_800 + 3 * 2560)):
        added = sum(p.numel() for _, p in decoder.adapter_parameters())
        assert sum(p.numel() for p in decoder.parameters()) - added == published
        assert bool(added) == bool(adapted)
        assert len(decoder.layers) == 32


@pytest.mark.parametrize("family", NEW)
def test_any_family_from_scratch(family: str, build_small: Build) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    ours = build_small("text_decoder", "hf", config=NEW[family]).eval()
    assert ours.vocab_size == 50
    theirs = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**NEW[family], vocab_size=50, pad_token_id=None)
    ).eval()
    theirs.load_state_dict(ours.model.state_dict())
    ids = torch.randint(0, 50, (2, LENGTH))
    logits = ours.logits(ours(ours.embed(ids)))
    torch.testing.assert_close(logits, theirs(input_ids=ids).logits, atol=1e-5, rtol=0)
    torch.manual_seed(3)
    one = build_small("text_decoder", "hf", config=NEW[family]).eval()
    torch.manual_seed(3)
    same = build_small("text_decoder", "hf", config=NEW[family]).eval()
    assert torch.equal(one(ours.embed(ids)), same(ours.embed(ids)))
    assert not torch.allclose(one(ours.embed(ids)), ours(ours.embed(ids)))
    assert build_small("text_decoder", "hf", config={**NEW[family], "vocab_size": 60}).vocab_size == 60
    assert build_small("text_decoder", "hf", config={**NEW[family], "vocab_size": 40}).vocab_size == 50


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model_type None"),
        ({"model_type": "clip"}, "model_type 'clip' is no causal language model"),
        ({"model_type": "gpt2", "n_layers": 3}, "gpt2 has no setting n_layers"),
        ({"model_type": "gpt2", "n_embd": 30, "n_head": 4}, "num_heads"),
    ],
)
def test_impossible_families_are_refused(config: dict[str, Any], message: str, build_small: Build) -> None:
    with pytest.raises(LabError, match=message) as caught:
        build_small("text_decoder", "hf", config=config)
    assert "\n" not in str(caught.value)


def test_a_model_that_caps_its_logits_is_refused(build_small: Build) -> None:
    with pytest.raises(LabError, match="scales or caps"):
        build_small("text_decoder", "hf", path="gemma2")


def test_what_cannot_be_loaded_is_named(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    from lab.registry import build

    for path in (tmp_path / "nowhere", tmp_path, checkpoints("clip")):
        with pytest.raises(LabError, match=r"config\.json and model\.safetensors") as caught:
            build("text_decoder", {"name": "hf", "path": str(path)}, 50)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_weights_are_named(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from lab.registry import build

    (tmp_path / "config.json").write_text((checkpoints("llama") / "config.json").read_text())
    weights = load_file(checkpoints("llama") / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(LabError, match=r"lacks weights.*layers\.1\.mlp\.up_proj"):
        build("text_decoder", {"name": "hf", "path": str(tmp_path)}, 50)
