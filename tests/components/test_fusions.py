"""Fusions: closed gates change nothing, a position reads its own image, caches and copies agree; parities."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab.errors import LabError
from lab.registry import build

DIM, TOKENS, ROWS, LENGTH = 32, 5, 2, 9
SIZE = {"hidden_size": DIM, "num_hidden_layers": 3, "num_attention_heads": 4}
WIDE = {**SIZE, "intermediate_size": 48, "num_key_value_heads": 2}
LLAMA = {"name": "llama", "dim": DIM, "depth": 3}
FAMILIES = {
    "llama": LLAMA,
    "grouped": {**LLAMA, "num_key_value_heads": 2},
    "lora": {**LLAMA, "lora_rank": 2, "adapter_dim": 2},
    "mistral": {"name": "hf", "config": {"model_type": "mistral", **WIDE}},
    "qwen2": {"name": "hf", "config": {"model_type": "qwen2", **WIDE}},
    "gemma": {"name": "hf", "config": {"model_type": "gemma", **WIDE, "head_dim": 12}},
    "opt": {"name": "hf", "config": {"model_type": "opt", **SIZE, "word_embed_proj_dim": DIM, "ffn_dim": 48}},
    "bloom": {"name": "hf", "config": {"model_type": "bloom", "hidden_size": DIM, "n_layer": 3, "n_head": 4}},
    "gpt2": {"name": "hf", "config": {"model_type": "gpt2", "n_embd": DIM, "n_layer": 3, "n_head": 4}},
}
FUSIONS = {
    "cross_attention": {"name": "cross_attention", "every": 1},
    "narrow": {"name": "cross_attention", "every": 2, "dim_visual": 24, "activation": "gelu", "head_dim": 6},
    "prefix": {"name": "prefix"},
    "early": {"name": "prefix", "prompted_layers": 3, "visual_layers": 1},
}
PROMPTED = ("llama", "grouped", "lora", "mistral", "qwen2", "gemma")
every_fusion = pytest.mark.parametrize("fused", FUSIONS)

IMAGE = torch.tensor([[-1, -1, 0, 0, 0, 1, 1, 1, 1], [-1, 0, 0, 0, 0, 0, 0, 1, 1]])


class Model(nn.Module):
    """A language model with a fusion hooked to it."""

    def __init__(self, family: str, fused: str) -> None:
        super().__init__()
        self.decoder: Any = build("text_decoder", FAMILIES[family], 50)
        self.fusion: Any = build("fusion", FUSIONS[fused], DIM, len(self.decoder.layers), TOKENS)
        self.fusion.attach(self.decoder.layers)
        self.eval()

    def forward(self, embeds: Tensor, tokens: Tensor, image: Tensor, *rest: Any, **more: Any) -> Tensor:
        with self.fusion.reading(tokens, image):
            return self.decoder(embeds, *rest, **more)

    def tokens(self, images: int = 2) -> Tensor:
        return torch.randn(ROWS, images, TOKENS, self.fusion.dim_visual)

    def open(self, *names: str) -> Model:
        """Open the gates with one of these words in their name, all without any."""
        with torch.no_grad():
            for name, parameter in self.fusion.named_parameters():
                if "gate" in name and any(word in name for word in names or [""]):
                    parameter.copy_(torch.rand_like(parameter) + 0.5)
        return self


@pytest.fixture
def embeds() -> Tensor:
    return torch.randn(ROWS, LENGTH, DIM)


@pytest.mark.parametrize(
    ("family", "fused"),
    [
        (family, fused)
        for fused in FUSIONS
        for family in FAMILIES
        if family in PROMPTED or FUSIONS[fused]["name"] != "prefix"
    ],
)
def test_closed_gates_leave_every_logit_as_it_was(family: str, fused: str, embeds: Tensor) -> None:
    model = Model(family, fused)
    mask = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    mask[0, :2] = False
    plain = model.decoder.logits(model.decoder(embeds, mask))
    tokens = model.tokens()
    assert torch.equal(model.decoder.logits(model(embeds, tokens, IMAGE, mask)), plain)

    model.open()
    read = model.decoder.logits(model(embeds, tokens, IMAGE, mask))
    assert not torch.allclose(read[:, -1], plain[:, -1], atol=1e-3)
    assert not torch.allclose(
        read[:, -1], model.decoder.logits(model(embeds, tokens + 1, IMAGE, mask))[:, -1]
    )
    assert torch.equal(model.decoder.logits(model.decoder(embeds, mask)), plain)  # nothing is read outside


def test_before_the_first_image_cross_attention_adds_exactly_zero(embeds: Tensor) -> None:
    model = Model("llama", "cross_attention").open("gate_attention")
    tokens, before = model.tokens(), IMAGE < 0
    added = model.fusion.blocks[0].attend(embeds, tokens, IMAGE)
    assert not added[before].any()
    assert added[~before].abs().amax(dim=1).all()
    assert torch.equal(model(embeds, tokens, IMAGE)[before], model.decoder(embeds)[before])


@every_fusion
def test_a_position_reads_the_last_image_alone(fused: str, embeds: Tensor) -> None:
    model = Model("llama", fused).open()
    entered: dict[int, list[Tensor]] = {}
    for number, layer in enumerate(model.decoder.layers):
        last = layer.mlp if "prefix" in FUSIONS[fused]["name"] else layer.input_layernorm
        last.register_forward_pre_hook(lambda _, args, n=number: entered.setdefault(n, []).append(args[0]))
    tokens = model.tokens()
    swapped = torch.cat([torch.randn_like(tokens[:, :1]), tokens[:, 1:]], 1)
    one, other = model(embeds, tokens, IMAGE), model(embeds, swapped, IMAGE)
    first = next(number for number, (a, b) in sorted(entered.items()) if not torch.equal(a, b))
    a, b = entered[first]
    assert torch.equal(a[IMAGE != 0], b[IMAGE != 0])  # in the first layer that reads
    assert (a - b)[IMAGE == 0].abs().amax(dim=1).all()
    assert torch.equal(one[IMAGE < 0], other[IMAGE < 0])
    assert not torch.allclose(one[IMAGE == 1], other[IMAGE == 1])  # through the language model


@every_fusion
@pytest.mark.parametrize("padded", [False, True])
def test_cached_equals_uncached(fused: str, padded: bool, embeds: Tensor) -> None:
    model = Model("grouped", fused).open()
    tokens, image = model.tokens(), IMAGE.clone()
    mask = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    if padded:
        mask[0, :3] = False
        image[0, :4] = -1
    whole = model(embeds, tokens, image, mask)
    cache = model.decoder.new_cache()
    runs = [(0, 4), *((t, t + 1) for t in range(4, 7)), (7, LENGTH)]
    pieces = [
        model(embeds[:, start:end], tokens, image[:, start:end], mask[:, :end], cache=cache)
        for start, end in runs
    ]
    torch.testing.assert_close(torch.cat(pieces, 1)[mask], whole[mask], atol=1e-5, rtol=0)


@every_fusion
def test_padding_changes_nothing(fused: str, embeds: Tensor) -> None:
    model = Model("llama", fused).open()
    tokens = model.tokens()
    alone = model(embeds, tokens, IMAGE)
    mask = nn.functional.pad(torch.ones(ROWS, LENGTH, dtype=torch.bool), (3, 2))
    padded = torch.cat([torch.randn(ROWS, 3, DIM), embeds, torch.randn(ROWS, 2, DIM)], 1)
    spare = torch.cat([tokens, torch.randn_like(tokens[:, :1])], 1)  # an image that only other rows have
    states = model(padded, spare, nn.functional.pad(IMAGE, (3, 2), value=-1), mask)
    torch.testing.assert_close(states[:, 3:-2], alone, atol=1e-5, rtol=0)


@every_fusion
def test_a_row_is_the_same_beside_others(fused: str, embeds: Tensor) -> None:
    model = Model("llama", fused).open()
    tokens, image = model.tokens(), IMAGE.clone()
    image[1] = -1  # a row of text alone
    both = model(embeds, tokens, image)
    torch.testing.assert_close(model(embeds[:1], tokens[:1], image[:1]), both[:1], atol=1e-5, rtol=0)
    text = model(embeds[1:], tokens[1:, :0], image[1:])  # no images at all
    torch.testing.assert_close(text, both[1:], atol=1e-5, rtol=0)


@every_fusion
def test_gradients(fused: str, embeds: Tensor) -> None:
    model = Model("lora", fused)
    tokens = model.tokens().requires_grad_()

    def reached() -> set[str]:
        model.zero_grad()
        model(embeds, tokens, IMAGE).square().sum().backward()
        return {name for name, p in model.fusion.named_parameters() if p.grad is not None and p.grad.any()}

    names = {name for name, _ in model.fusion.named_parameters()}
    assert reached() == {name for name in names if "gate" in name}  # closed gates are the way in
    model.open()
    assert reached() == names
    assert tokens.grad is not None
    assert tokens.grad.flatten(1).any(dim=1).all()


@every_fusion
def test_a_copy_is_hooked_to_itself(fused: str, embeds: Tensor) -> None:
    model = Model("lora", fused).open()
    tokens = model.tokens()
    before = model(embeds, tokens, IMAGE)
    for copy in (deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copy(embeds, tokens, IMAGE), before)
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.zero_()
        assert torch.equal(model(embeds, tokens, IMAGE), before)
        assert not copy(embeds, tokens, IMAGE).any()
    assert not any("decoder" in name for name in model.fusion.state_dict())
    assert (
        model.decoder.state_dict().keys() == build("text_decoder", FAMILIES["lora"], 50).state_dict().keys()
    )


def test_reading_is_closed_by_an_error() -> None:
    model = Model("llama", "cross_attention").open()
    tokens, embeds = model.tokens(), torch.randn(ROWS, LENGTH, DIM)
    plain = model.decoder(embeds)
    with pytest.raises(ValueError, match=r"image numbers \(2, 9\) for a run of \(2, 1\)"):
        model(embeds[:, :1], tokens, IMAGE)
    assert torch.equal(model.decoder(embeds), plain)


def test_blocks_are_inserted_before_every_nth() -> None:
    decoder = build("text_decoder", {**LLAMA, "depth": 7}, 50)
    fusion = build("fusion", {"name": "cross_attention", "every": 3}, DIM, 7, TOKENS)
    fusion.attach(decoder.layers)
    assert [i for i, layer in enumerate(decoder.layers) if layer._forward_pre_hooks] == [2, 5]
    assert len(fusion.blocks) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "cross_attention", "every": 4}, "every 4 .* 3 blocks"),
        ({"name": "cross_attention", "every": 0}, "every 0"),
        ({"name": "prefix", "prompted_layers": 4}, "prompted_layers 4"),
        ({"name": "prefix", "visual_layers": 3}, "visual_layers 3 .* 2 prompted"),
    ],
)
def test_impossible_settings_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        build("fusion", spec, DIM, 3, TOKENS)


@pytest.mark.parametrize(
    ("spec", "family", "message"),
    [
        ({"name": "prefix"}, "gpt2", "llama, mistral, .* not of GPT2Block"),
        ({"name": "prefix"}, "opt", "not of opt"),
        ({"name": "prefix", "num_heads": 8}, "llama", "num_heads 8, but the language model has 4"),
    ],
)
def test_unfit_blocks_are_refused(spec: dict[str, Any], family: str, message: str) -> None:
    decoder = build("text_decoder", FAMILIES[family], 50)
    with pytest.raises(ValueError, match=message):
        build("fusion", spec, DIM, 3, TOKENS).attach(decoder.layers)
    with pytest.raises(ValueError, match=r"built for 5 blocks .* not 3"):
        build("fusion", {"name": "cross_attention"}, DIM, 5, TOKENS).attach(decoder.layers)


def test_the_prompts_have_a_softmax_of_their_own(embeds: Tensor) -> None:
    """What prompts add is in proportion to the gate, so the text's own weights are not touched."""
    model = Model("llama", "prefix")
    tokens, read = model.tokens(), []
    projection = model.decoder.layers[1].self_attn.o_proj  # the first with prompts
    projection.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    for gate in (0.0, 0.3, 2.0):
        with torch.no_grad():
            model.fusion.visual[0].gate.fill_(gate)
        model(embeds, tokens, IMAGE)
    plain, little, much = read
    ratio = torch.tensor(2.0).tanh() / torch.tensor(0.3).tanh()
    torch.testing.assert_close(much - plain, (little - plain) * ratio, atol=1e-5, rtol=1e-4)


def test_late_prompts_do_not_read_images(embeds: Tensor) -> None:
    model = Model("llama", "early").open("static")
    one, other = (model(embeds, model.tokens(), IMAGE) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.allclose(one, model.decoder(embeds))
    assert [name.split(".")[0] for name in model.fusion.state_dict()] == ["visual"] * 2 + ["static"] * 4


@pytest.mark.parametrize("family", ["llama", "grouped", "mistral"])
def test_prompts_equal_those_of_peft(family: str, embeds: Tensor) -> None:
    from peft import AdaptionPromptConfig, get_peft_model

    model = Model(family, "prefix").open()
    theirs = build("text_decoder", FAMILIES[family], 50).eval()
    theirs.load_state_dict(model.decoder.state_dict())
    config = AdaptionPromptConfig(adapter_len=TOKENS, adapter_layers=2, task_type="CAUSAL_LM")
    get_peft_model(theirs.model, config)
    adapted = [layer.self_attn for layer in theirs.layers[1:]]
    with torch.no_grad():
        for attention, own in zip(adapted, model.fusion.visual, strict=True):
            own.gate.copy_(own.gate[0].expand(4))  # theirs has one gate for all heads, and no tanh
            attention.adaption_prompt.copy_(own.prompt.unsqueeze(0))
            attention.adaption_gate.copy_(own.gate[:1].tanh())
    states = model(embeds, model.tokens(0), torch.full_like(IMAGE, -1))
    torch.testing.assert_close(states, theirs(embeds), atol=1e-5, rtol=0)
    assert not torch.allclose(states, model.decoder(embeds), atol=1e-2)


def test_the_gated_block_equals_that_of_idefics(embeds: Tensor) -> None:
    from transformers.models.idefics.configuration_idefics import IdeficsConfig
    from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer

    config = IdeficsConfig(
        hidden_size=DIM,
        num_attention_heads=4,
        intermediate_size=48,
        qk_layer_norms=False,
        alpha_type="float",
        vision_config={"embed_dim": 24},
        attn_implementation="eager",
    )
    theirs = IdeficsGatedCrossAttentionLayer(config, 0).eval()
    spec = {"name": "cross_attention", "dim_visual": 24, "head_dim": 8}
    ours = build("fusion", spec, DIM, 2, TOKENS).eval().blocks[0]
    attention = theirs.cross_attn
    with torch.no_grad():
        for name, layer in {"q": ours.query, "k": ours.key, "v": ours.value, "o": ours.out}.items():
            getattr(attention, f"{name}_proj").weight.copy_(layer.weight)
        theirs.alpha_cross_attn.copy_(ours.gate_attention.fill_(0.4))
        theirs.alpha_dense.copy_(ours.gate_mlp.fill_(-0.9))
    # another norm and another MLP: these are taken over, the rest is compared
    theirs.input_layernorm, theirs.post_attention_layernorm, theirs.mlp = ours.norm, nn.Identity(), ours.mlp
    tokens = torch.randn(ROWS, 2, TOKENS, 24)
    seen = (IMAGE.unsqueeze(2) == torch.arange(2)).repeat_interleave(TOKENS, 2).unsqueeze(1)
    expected = theirs(
        embeds,
        image_hidden_states=tokens.flatten(1, 2),
        image_attention_mask=torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min),
        cross_attention_gate=(IMAGE >= 0).float(),
    )
    torch.testing.assert_close(ours(embeds, tokens, IMAGE), expected, atol=1e-5, rtol=0)


def test_tokens_in_the_sequence_need_no_layers(embeds: Tensor) -> None:
    decoder = build("text_decoder", LLAMA, 50).eval()
    fusion = build("fusion", {"name": "sequence", "one_position": True}, DIM, 3, TOKENS)
    fusion.attach(decoder.layers)
    assert (fusion.in_sequence, fusion.bidirectional, fusion.one_position) == (True, False, True)
    assert fusion.dim_visual == DIM
    assert not list(fusion.parameters())
    plain = decoder(embeds)
    with fusion.reading(torch.randn(ROWS, 2, TOKENS, DIM), IMAGE):
        assert torch.equal(decoder(embeds), plain)


def test_full_size_is_built_without_memory() -> None:
    with torch.device("meta"):
        llama = {"name": "llama", "dim": 4096, "depth": 32, "num_heads": 32, "mlp_ratio": 2.6875}
        decoder = build("text_decoder", llama, 32000)
        gated = {"name": "cross_attention", "every": 4, "head_dim": 64, "num_heads": 8, "dim_visual": 1024}
        blocks = build("fusion", gated, 4096, 32, 64)
        prompts = build("fusion", {"name": "prefix", "num_heads": 32}, 4096, 32, 10)
        blocks.attach(decoder.layers)
        prompts.attach(decoder.layers)
    assert sum(p.numel() for p in prompts.parameters()) == 31 * (10 * 4096 + 32)
    dense, attention = 2 * 4 * 4096**2, 2 * 512 * (4096 + 1024)
    assert sum(p.numel() for p in blocks.parameters()) == 8 * (dense + attention + 4 * 4096 + 2)
