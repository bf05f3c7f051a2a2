"""Causality, padding, caching and LoRA of text decoders; pretrained models equal transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lab.errors import LabError
from lab.registry import words

Build = Callable[..., Any]
FAMILIES = ["llama", "gpt2", "qwen2", "bloom"]
every_decoder = pytest.mark.parametrize(
    ("word", "settings"),
    [(word, {}) for word in words("text_decoder")] + [("hf", {"path": family}) for family in FAMILIES],
    ids=words("text_decoder") + [f"hf-{family}" for family in FAMILIES],
)
LENGTH, PADDING = 9, 4


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
def test_lora_leaves_the_outputs_as_they_were_at_first(
    word: str, settings: dict[str, Any], build_small: Build, decoder: Any, embeds: Tensor
) -> None:
    adapted = build_small("text_decoder", word, **settings, lora_rank=2).eval()
    adapted.load_state_dict(decoder.state_dict())  # a state dict that knows nothing of adapters
    assert torch.equal(adapted(embeds), decoder(embeds))
    assert not decoder.adapter_parameters()

    adapters = dict(adapted.adapter_parameters())
    assert adapters
    assert all(parameter.requires_grad for parameter in adapted.parameters())
    adapted(embeds).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in adapters.items() if "lora_B" in name)
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.add_(0.1)
    assert not torch.allclose(adapted(embeds), decoder(embeds), atol=1e-3)

    again = build_small("text_decoder", word, **settings, lora_rank=2).eval()
    again.load_state_dict(adapted.state_dict())
    assert torch.equal(again(embeds), adapted(embeds))


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
