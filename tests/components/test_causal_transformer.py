"""The causal transformer: order of its tokens, parity with torch's decoder, and discrete tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lab.errors import LabError

Build = Callable[..., Any]
WORD = "causal_transformer"


@pytest.mark.parametrize("codes", [0, 8])
def test_a_token_follows_from_the_queries_up_to_it(codes: int, build_small: Build) -> None:
    connector = build_small("connector", WORD, num_queries=6, codes=codes).eval()
    tokens = torch.randn(2, 16, 24)
    before = connector._read(tokens)
    connector.queries.data[:, 3] += torch.randn(128)
    after = connector._read(tokens)
    assert torch.equal(before[:, :3], after[:, :3])  # bit for bit
    assert not torch.isclose(before[:, 3:], after[:, 3:]).all(dim=2).any()


def test_any_number_of_image_tokens_without_positions(build_small: Build) -> None:
    connector = build_small("connector", WORD, positions=False)
    assert connector(torch.randn(2, 7, 24)).shape == (2, 16, 40)
    tokens = torch.randn(2, 16, 24)
    torch.testing.assert_close(connector(tokens), connector(tokens[:, torch.randperm(16)]), atol=1e-5, rtol=0)


def test_blocks_equal_the_decoder_of_torch(build_small: Build) -> None:
    layer = nn.TransformerDecoderLayer(24, 4, 96, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerDecoder(layer, 3, nn.LayerNorm(24)).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    ours = build_small("connector", WORD, dim=24, depth=3, num_queries=5, positions=False).eval()
    nn.init.normal_(ours.queries)
    renames = {
        "norm1": "norm_attend",
        "norm2": "norm_cross",
        "norm3": "mlp.0",
        "linear1": "mlp.1",
        "linear2": "mlp.3",
        "self_attn.out_proj": "attend.out",
        "multihead_attn.out_proj": "cross.out",
    }
    state = {f"norm.{name}": value for name, value in theirs.norm.state_dict().items()}
    for index, block in enumerate(theirs.layers):
        for old, new in renames.items():
            for name, value in block.get_submodule(old).state_dict().items():
                state[f"blocks.{index}.{new}.{name}"] = value
        for attention, new in ((block.self_attn, "attend"), (block.multihead_attn, "cross")):
            for kind in ("weight", "bias"):
                thirds = getattr(attention, f"in_proj_{kind}").chunk(3)
                for part, value in zip(("query", "key", "value"), thirds, strict=True):
                    state[f"blocks.{index}.{new}.{part}.{kind}"] = value
    report = ours.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert {key.split(".")[0] for key in report.missing_keys} == {"norm_image", "queries", "project"}
    tokens = torch.randn(3, 16, 24)
    later = nn.Transformer.generate_square_subsequent_mask(5)
    expected = theirs(ours.queries.expand(3, -1, -1), ours.norm_image(tokens), tgt_mask=later)
    torch.testing.assert_close(ours(tokens), ours.project(expected), atol=1e-5, rtol=0)


def test_continuous_tokens_have_no_codebook_and_no_loss(build_small: Build) -> None:
    connector = build_small("connector", WORD)
    tokens = torch.randn(3, 16, 24)
    read, loss = connector.autoencode(tokens)
    assert connector.codebook is None
    assert torch.equal(read, connector(tokens))
    assert torch.equal(loss, torch.zeros(3))


def test_discrete_tokens_are_rows_of_the_codebook(build_small: Build) -> None:
    connector = build_small("connector", WORD, codes=32).eval()
    tokens = torch.randn(3, 16, 24)
    read, loss = connector.autoencode(tokens)
    assert torch.equal(read, connector(tokens))
    assert connector.codebook.shape == (32, 40)
    assert loss.shape == (3,)
    distance, index = torch.cdist(read.flatten(0, 1), connector.codebook).min(dim=1)
    assert distance.max() < 1e-4
    torch.testing.assert_close(read.flatten(0, 1), connector.codebook[index], atol=1e-5, rtol=0)
    x = connector._read(tokens).flatten(0, 1)
    nearest = (x.unsqueeze(1) - connector.codes).square().sum(dim=2)  # (B * M, K)
    assert torch.equal(nearest.argmin(dim=1), index)
    expected = 1.25 * nearest.min(dim=1).values.view(3, 16).mean(dim=1) / 16  # both terms have this value
    torch.testing.assert_close(loss, expected)


def test_gradients_pass_straight_through_and_codes_learn_by_their_loss(build_small: Build) -> None:
    connector = build_small("connector", WORD, codes=32).eval()
    seen: dict[str, torch.Tensor] = {}
    connector.bottleneck.register_forward_hook(lambda *args: args[2].retain_grad() or seen.update(x=args[2]))
    connector.project.register_forward_pre_hook(
        lambda _, args: args[0].retain_grad() or seen.update(code=args[0])
    )
    tokens = torch.randn(2, 16, 24)
    connector(tokens).square().sum().backward()
    assert torch.equal(seen["x"].grad, seen["code"].grad)
    assert connector.codes.grad is None
    connector.autoencode(tokens)[1].sum().backward()
    used = connector.codes.grad.abs().sum(dim=1) > 0
    assert 0 < used.sum() < 32


def test_codes_that_nothing_uses_are_placed_on_tokens(build_small: Build) -> None:
    connector = build_small("connector", WORD, codes=64, restart=3)
    tokens = torch.randn(8, 16, 24)
    before = connector.codes.detach().clone()
    connector.eval().autoencode(tokens)
    connector.train()(tokens)
    assert torch.equal(connector.codes, before)  # neither in evaluation nor when the tokens are only read
    connector.autoencode(tokens)
    x = connector._read(tokens).flatten(0, 1)
    assert torch.cdist(connector.codes, x).min(dim=1).values.max() < 1e-3  # the first batch places all
    connector.codes.data[:60] = 1e3
    for _ in range(4):
        connector.autoencode(tokens)
    assert connector.codes.abs().max() < 1e2
    fixed = build_small("connector", WORD, codes=64, restart=0)
    before = fixed.codes.detach().clone()
    fixed.autoencode(tokens)
    assert torch.equal(fixed.codes, before)


def test_most_codes_stay_in_use(build_small: Build) -> None:
    """SEED: perplexity of the codes in use above a fifth of their number."""
    connector = build_small("connector", WORD, num_queries=8, dim=32, codes=32, restart=10)
    back = nn.Linear(8 * 40, 16)
    optimiser = torch.optim.Adam([*connector.parameters(), *back.parameters()], 3e-3)
    for _ in range(60):
        tokens = torch.randn(32, 16, 24)
        read, loss = connector.autoencode(tokens)
        error = (back(read.flatten(1)) - tokens[:, :, 0]).square().mean()
        optimiser.zero_grad()
        (error + loss.mean()).backward()
        optimiser.step()
    codes = connector._nearest(connector._read(torch.randn(256, 16, 24)))
    share = codes.flatten().bincount(minlength=32) / codes.numel()
    assert torch.special.entr(share).sum().exp() > 0.2 * 32


def test_one_code_is_refused(build_small: Build) -> None:
    with pytest.raises(LabError, match="codes must be 0 or at least 2, not 1"):
        build_small("connector", WORD, codes=1)
